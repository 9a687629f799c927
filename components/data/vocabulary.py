"""Rows of a vocabulary by their text: a dictionary for a small one, a sorted array of hashes for a large one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LARGE_ROWS = 1 << 16
"""From here on a dictionary's memory (about 130 bytes a row) counts for more than its speed."""
CHUNK_ROWS = 1 << 18


class Index(Protocol):
    """`find` gives the rows (int32) of texts; 0 for an unknown one, the row of "missing", if any, for None or ""."""

    def find(self, texts: Sequence[str | None]) -> NDArray[np.int32]: ...


def index(values: pa.Array) -> Index:
    """Of a vocabulary's texts by row. Row 0 is out-of-vocabulary; null in any other is "missing"."""
    return HashIndex(values) if len(values) > LARGE_ROWS else DictIndex(values)


class DictIndex:
    def __init__(self, values: pa.Array) -> None:
        known = {value: row for row, value in enumerate(values.to_pylist()) if row > 0}
        self._rows: dict[str | None, int] = {None: 0, **known}
        self._rows[""] = self._rows[None]

    def find(self, texts: Sequence[str | None]) -> NDArray[np.int32]:
        rows = list(map(self._rows.get, texts))
        if None in rows:
            rows = [row or 0 for row in rows]
        return np.array(rows, np.int32)


class HashIndex:
    """In 14 to 16 bytes a row, beside the texts themselves as Arrow has them.

    Rows are sorted by Python's 64-bit hash of their text, which is sought among the one or two that share its leading
    bits; then the texts are compared. Texts whose hashes are equal are in a dictionary.
    """

    def __init__(self, values: pa.Array, hash: Callable[[Any], int] = hash) -> None:
        self._values = values
        self._hash = hash
        hash_N = np.empty(len(values), np.uint64)
        for start in range(0, len(values), CHUNK_ROWS):
            hash_N[start : start + CHUNK_ROWS] = self._hashes(values[start : start + CHUNK_ROWS].to_pylist())
        texts = np.asarray(pc.is_valid(values))
        texts[0] = False
        (missing,) = np.nonzero(np.asarray(pc.is_null(values))[1:])
        self._missing = int(missing[0]) + 1 if len(missing) else 0
        rows = np.flatnonzero(texts).astype(np.int32)
        self._row_N = rows[np.argsort(hash_N[rows])]
        self._hash_N = hash_N[self._row_N]
        bits = max(len(rows).bit_length() - 1, 1)
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((self._hash_N >> self._shift).astype(np.int64), minlength=1 << bits)
        self._start_K = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        """Where the hashes of each leading bits begin."""
        second = 1 + np.flatnonzero(self._hash_N[1:] == self._hash_N[:-1])
        clashing = self._row_N[np.union1d(second, second - 1)]
        self._clashing = {values[int(row)].as_py(): int(row) for row in clashing}

    def find(self, texts: Sequence[str | None]) -> NDArray[np.int32]:
        row_n = self._rows(self._hashes(texts))
        same = pc.equal(self._values.take(pa.array(row_n)), pa.array(texts, pa.string()))
        row_n[~np.asarray(pc.fill_null(same, False))] = 0
        for i in np.flatnonzero(row_n == 0).tolist():
            text = texts[i]
            row_n[i] = self._clashing.get(text, 0) if text else self._missing
        return row_n

    def _rows(self, hash_n: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The first row of each hash, or 0."""
        row_n = np.zeros(len(hash_n), np.int32)
        bucket_n = (hash_n >> self._shift).astype(np.int64)
        place_n, end_n = self._start_K[bucket_n], self._start_K[bucket_n + 1]
        left = np.flatnonzero(place_n < end_n)
        while len(left):
            place = place_n[left]
            found = self._hash_N[place] == hash_n[left]
            row_n[left[found]] = self._row_N[place[found]]
            place_n[left] += 1
            left = left[~found & (place + 1 < end_n[left])]
        return row_n

    def _hashes(self, texts: Sequence[str | None]) -> NDArray[np.uint64]:
        return np.fromiter(map(self._hash, texts), np.int64, len(texts)).view(np.uint64)
