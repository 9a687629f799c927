"""Several ranking requests scored at once, each user's history read once for all candidates and kept between requests.

Micro-batches and kept keys and values are after M-FALCON (arXiv 2402.17152).

Shape letters: B rows of all requests, N rows of a sequence in them, L sequence length, D width.
"""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import PAD, Batch
from narrowcast.components.data.schema import HISTORY
from narrowcast.components.train.histories import Amortised, HistoryState
from narrowcast.components.train.histories.mean import masked_mean
from narrowcast.components.train.scorer import Found

CACHE_BYTES = 64 << 20
MICRO_BATCH = 512
ID_BYTES = np.dtype(np.int32).itemsize
ENTRY_BYTES = 1024
"""Counted for a cache entry beside its key and its tensors' memory: Python's objects and the dictionary's slot."""


class HistoryCache:
    """States of histories by their ids, at most `max_bytes` of them; those used longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[bytes, HistoryState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: bytes) -> HistoryState | None:
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: bytes, state: HistoryState) -> None:
        """Keep a state under a key that is not held yet, unless it alone would be over the bound."""
        size = entry_bytes(key, state)
        if size > self.max_bytes:
            return
        while self.num_bytes + size > self.max_bytes:
            self.num_bytes -= entry_bytes(*self._states.popitem(last=False))
        self._states[key] = state
        self.num_bytes += size


def entry_bytes(key: bytes, state: HistoryState) -> int:
    """What a cache entry weighs."""
    return state.num_bytes() + sys.getsizeof(key) + ENTRY_BYTES


def history_key(ids_L: NDArray[np.int32]) -> bytes:
    """What a history is kept under: its ids without the padding at the end."""
    return ids_L[: np.flatnonzero(ids_L != PAD).max(initial=-1) + 1].tobytes()


History: TypeAlias = HistoryState | tuple[Tensor, Tensor]
"""A request's history as its rows are scored: one state for all, or what was looked up and which of it is no padding,
with a history a row or one for all."""


class Ranker:
    """Scores requests with one table lookup, every history read once, and the rest in micro-batches of `micro_batch`.

    Scores are those of one row at a time, up to the order of float32 sums. A history's state is kept under the ids that
    it was encoded from, so that a history that moved on is another entry. For one thread at a time, and for one model:
    a new version has a ranker of its own. `hits` and `misses` count the histories found in the cache and those encoded.
    """

    def __init__(self, packed: PackedModel, *, cache_bytes: int = CACHE_BYTES, micro_batch: int = MICRO_BATCH) -> None:
        self.network = packed.network
        self.scorer = packed.network.scorer
        self.micro_batch = micro_batch
        self.cache = HistoryCache(cache_bytes)
        self.hits = 0
        self.misses = 0

    @property
    def cached_bytes(self) -> int:
        return self.cache.num_bytes

    @torch.inference_mode()
    def score(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Click probabilities (float32, one a row) of several requests.

        A request is one user's candidates, with one history for all of them, or rows of several users with a history
        each.
        """
        if not batches:
            return []
        keys = [self._key(batch) for batch in batches]
        states = {key: state for key in keys if key is not None and (state := self.cache.get(key))}
        missing = {
            key: batch for key, batch in zip(keys, batches, strict=True) if key is not None and key not in states
        }
        stateless = [batch for key, batch in zip(keys, batches, strict=True) if key is None]
        self.misses += len(missing)
        self.hits += len(batches) - len(stateless) - len(missing)
        found = self._look_up(batches, [*missing.values(), *stateless])
        states |= self._encode(list(missing), found)
        read = iter(self._rows(stateless, found, len(missing)))
        histories = [next(read) if key is None else states[key] for key in keys]
        probability_B = torch.sigmoid(self._logits(batches, found, histories)).float().numpy()
        return np.split(probability_B, np.cumsum([len(batch) for batch in batches])[:-1])

    def _key(self, batch: Batch) -> bytes | None:
        """What the state of a request's one history is kept under; None for a request or encoder without one."""
        if not isinstance(self.scorer.history, Amortised) or len(batch.sequences[HISTORY]) != 1:
            return None
        return history_key(batch.sequences[HISTORY][0])

    def _look_up(self, batches: Sequence[Batch], unread: Sequence[Batch]) -> Found:
        """Everything that the requests look up, but of histories only those of `unread`."""
        sequences = {
            name: _joined([batch.sequences[name] for batch in (unread if name == HISTORY else batches)])
            for name in self.scorer.layout.sequences
            if name != HISTORY or unread
        }
        if HISTORY in sequences:
            length = int((sequences[HISTORY] != PAD).any(0).sum())
            sequences[HISTORY] = sequences[HISTORY][:, : max(length, 1)]
        return self.network.lookup(_joined([batch.ids_BF for batch in batches]), sequences)

    def _encode(self, keys: Sequence[bytes], found: Found) -> dict[bytes, HistoryState]:
        """The states of the histories that were looked up first, encoded together and kept."""
        if not keys:
            return {}
        rows_NLD, valid_NL = found.rows_BLD[HISTORY][: len(keys)], found.valid_BL[HISTORY][: len(keys)]
        together = self.scorer.history.encode(rows_NLD, valid_NL)
        states = {}
        for i, key in enumerate(keys):
            states[key] = together.user(i, max(len(key) // ID_BYTES, 1))
            self.cache.put(key, states[key])
        return states

    def _rows(self, batches: Sequence[Batch], found: Found, start: int) -> list[History]:
        """Of requests without a state: what was looked up of their histories, from row `start` on."""
        if self.scorer.history is None or not batches:
            return [()] * len(batches)
        sizes = [len(batch.sequences[HISTORY]) for batch in batches]
        parts = (values[start:].split(sizes) for values in (found.rows_BLD[HISTORY], found.valid_BL[HISTORY]))
        return list(zip(*parts, strict=True))

    def _logits(self, batches: Sequence[Batch], found: Found, histories: Sequence[History]) -> Tensor:
        """B, in micro-batches over all requests' rows."""
        dense_BN = _joined([batch.dense_BN for batch in batches])
        tokens = {
            name: _spread(masked_mean(found.rows_BLD[name], found.valid_BL[name]), name, batches)
            for name in self.scorer.layout.sequences
            if name != HISTORY
        }
        logits = []
        for start in range(0, len(dense_BN), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            categorical_BFD = found.categorical_BFD[rows]
            own_tokens = {name: token_BD[rows] for name, token_BD in tokens.items()}
            if self.scorer.history is not None:
                candidate_BD = self.scorer.candidates(categorical_BFD)
                own_tokens[HISTORY] = self._history_tokens(start, candidate_BD, batches, histories)
            logits.append(self.scorer.head(self.scorer.joined(categorical_BFD, own_tokens), dense_BN[rows]))
        return torch.cat(logits)

    def _history_tokens(
        self, start: int, candidate_BD: Tensor, batches: Sequence[Batch], histories: Sequence[History]
    ) -> Tensor:
        """Of the micro-batch of `candidate_BD` that begins at row `start` of all requests'."""
        tokens = []
        first = -start
        for batch, history in zip(batches, histories, strict=True):
            begin, end = max(first, 0), min(first + len(batch), len(candidate_BD))
            if begin < end:
                own = slice(begin - first, end - first)
                tokens.append(self._read(history, own, candidate_BD[begin:end]))
            first += len(batch)
        return torch.cat(tokens)

    def _read(self, history: History, rows: slice, candidate_BD: Tensor) -> Tensor:
        """History tokens of some rows of one request."""
        if isinstance(history, HistoryState):
            return self.scorer.history.score(history, candidate_BD.unsqueeze(0)).squeeze(0)
        rows_BLD, valid_BL = (part[rows] if len(part) > 1 else part for part in history)
        return self.scorer.history_tokens(rows_BLD, valid_BL, candidate_BD)


def _joined(parts: Sequence[NDArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _spread(token_ND: Tensor, name: str, batches: Sequence[Batch]) -> Tensor:
    """A token for every row of the requests, B x D, from one for every sequence `name` that they hold."""
    parts = token_ND.split([len(batch.sequences[name]) for batch in batches])
    return torch.cat([part.expand(len(batch), -1) for part, batch in zip(parts, batches, strict=True)])
