"""The request log: what the model was asked and what it answered, as Parquet part files that `read_log` reads back.

A row is a request: `_time`, `_version` (of the model), `_probability` (M float32), and every input of the schema as a
list of one value, which stands for all candidates, or of M. Names of our own start with an underscore, which a field's
cannot.
"""

import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrowcast.components.data.columns import LISTS, TIME, to_lists, to_text
from narrowcast.components.data.schema import Field, Schema
from narrowcast.errors import NarrowcastError

PARTS = "part-*.parquet"
SCHEMA_KEY = b"narrowcast.schema"
"""In a part's metadata: the schema's YAML."""
VALUES = {"categorical": pa.string(), "numeric": pa.float64(), "sequence": LISTS}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    time_us: int
    version: str
    columns: Mapping[str, Any]
    probability_M: NDArray[np.float32]


class RequestLog:
    """Writes requests in a thread of its own; `written` and `dropped` count requests.

    Every `roll_s` seconds, or `roll_rows` candidates, becomes a part file, which appears whole under its name; the
    oldest parts leave when all have more than `max_bytes`. A request is dropped, never waited for, when
    `max_pending_rows` candidates are not written yet or the disk refuses a part. `share` of the requests is logged,
    evenly spread. What was asked in the last `roll_s` seconds is lost if the process is killed.
    """

    def __init__(
        self,
        folder: str | Path,
        schema: Schema,
        *,
        share: float = 1.0,
        roll_rows: int = 100_000,
        roll_s: float = 60.0,
        max_bytes: int = 1 << 30,
        max_pending_rows: int = 400_000,
    ) -> None:
        """Raises NarrowcastError where the folder cannot be written."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError("no right to write")
        except OSError as error:
            raise NarrowcastError(f"requests cannot be logged to {folder} ({error}): give another folder") from None
        self.schema = schema
        self.written = 0
        self.dropped = 0
        self._share = share
        self._offered = 0
        self._roll_rows = roll_rows
        self._roll_s = roll_s
        self._max_bytes = max_bytes
        self._max_pending_rows = max_pending_rows
        self._pending: list[_Request] = []
        self._pending_rows = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    def write(self, columns: Mapping[str, Any], probability_M: NDArray[np.float32], version: str) -> None:
        """Log one request: the inputs as the model had them, of 1 or M values each, and what it answered.

        Neither may be changed afterwards.
        """
        request = _Request(
            time_us=time.time_ns() // 1000, version=version, columns=columns, probability_M=probability_M
        )
        with self._changed:
            self._offered += 1
            if int(self._offered * self._share) == int((self._offered - 1) * self._share):
                return
            if self._closing or self._pending_rows + len(probability_M) > self._max_pending_rows:
                self.dropped += 1
                return
            self._pending.append(request)
            self._pending_rows += len(probability_M)
            if len(self._pending) == 1 or self._pending_rows >= self._roll_rows:
                self._changed.notify()

    def close(self) -> None:
        """Write what is pending and end the thread; later requests are dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                self._changed.wait_for(
                    lambda: self._closing or self._pending_rows >= self._roll_rows, timeout=self._roll_s
                )
                requests, closing = self._pending, self._closing
                self._pending, self._pending_rows = [], 0
            if requests:
                try:
                    self._write_part(requests)
                    self.written += len(requests)
                except (OSError, pa.ArrowException, ValueError, TypeError, KeyError):
                    self.dropped += len(requests)
            if closing:
                return

    def _write_part(self, requests: Sequence[_Request]) -> None:
        columns = {
            "_time": pa.array([r.time_us for r in requests]).cast(TIME),
            "_version": pa.array([r.version for r in requests]),
            "_probability": _nested(
                pa.array(np.concatenate([r.probability_M for r in requests]), pa.float32()),
                [len(r.probability_M) for r in requests],
            ),
            **{field.name: _column(field, requests) for field in self.schema.inputs},
        }
        table = pa.table(columns).replace_schema_metadata({SCHEMA_KEY: self.schema.to_text()})
        path = self.folder / f"part-{time.time_ns():020d}-{os.getpid()}.parquet"
        temporary = path.with_suffix(".writing")
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._trim()

    def _trim(self) -> None:
        sizes = [(path, path.stat().st_size) for path in sorted(self.folder.glob("part-*"))]
        excess = sum(size for _, size in sizes) - self._max_bytes
        for path, size in sizes:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def read_log(
    folder: str | Path,
    *,
    schema: Schema | None = None,
    columns: Sequence[str] | None = None,
    since: datetime | None = None,
) -> pa.Table:
    """The logged requests in order of their parts, a row each; `columns` (default: all), those from `since` on.

    Only requests for models of `schema` are read (default: that of the newest part). Raises NarrowcastError where there
    are none.
    """
    schema = schema or logged_schema(folder)
    tables: list[pa.Table] = []
    for path in _parts(folder):
        try:
            if Schema.from_text(_schema_text(path)).hash != schema.hash:
                continue
            table = pq.read_table(path, columns=None if columns is None else [*columns, "_time"])
        except FileNotFoundError:  # the log's bound has just taken it
            continue
        if since is not None:
            table = table.filter(pc.greater_equal(table["_time"], since))
        tables.append(table if columns is None else table.select(list(columns)))
    if not sum(map(len, tables)):
        when = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
        raise NarrowcastError(
            f"{folder} holds no request{when} for a model of schema '{schema.name}' as it is now: give the log of a "
            "server of this schema"
        )
    return pa.concat_tables(tables)


def logged_values(folder: str | Path, field: Field, *, schema: Schema, since: datetime | None = None) -> pa.Array:
    """The field's logged values: one a candidate, or one a request where a single value stood for all."""
    column = read_log(folder, schema=schema, columns=[field.name], since=since)[field.name]
    return pc.list_flatten(column).combine_chunks()


def logged_schema(folder: str | Path) -> Schema:
    """The schema of the newest logged requests. Raises NarrowcastError where nothing is logged."""
    for path in reversed(_parts(folder)):
        try:
            return Schema.from_text(_schema_text(path))
        except FileNotFoundError:
            continue
    raise NarrowcastError(f"{folder} holds no logged requests: give the folder of a server's request log")


def _parts(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob(PARTS))


def _schema_text(path: Path) -> str:
    try:
        return (pq.read_schema(path).metadata or {})[SCHEMA_KEY].decode()
    except (pa.ArrowInvalid, KeyError):
        raise NarrowcastError(f"{path} is no part of a request log: move it elsewhere") from None


def _column(field: Field, requests: Sequence[_Request]) -> pa.Array:
    """The field's values, one list a request; an id has the one spelling it has everywhere."""
    parts = []
    for request in requests:
        parts.append(_typed(field, request.columns[field.name]))
        time.sleep(0)  # let a request that waits for the interpreter have it
    values = pa.concat_arrays(parts)
    if field.type == "categorical":
        values = to_text(values)
    elif field.type == "sequence":
        values = to_lists(values)
    return _nested(values, list(map(len, parts)))


def _typed(field: Field, values: Any) -> pa.Array:
    try:
        return pa.array(values, VALUES[field.type], from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # ids given as numbers
        array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
        return to_text(array) if field.type == "categorical" else array.cast(VALUES[field.type], safe=False)


def _nested(values: pa.Array, lengths: Sequence[int]) -> pa.Array:
    """`values` cut into lists."""
    offsets = np.fromiter(itertools.accumulate(lengths, initial=0), np.int32, len(lengths) + 1)
    return pa.ListArray.from_arrays(offsets, values)
