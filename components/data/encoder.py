"""The encoder: field values to the ids and numbers that a model computes with, the same in training and at the server.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrowcast.components.data.columns import plain, to_lists, to_text
from narrowcast.components.data.encoded import PAD, SPLITS, Batch, Layout
from narrowcast.components.data.schema import HISTORY, SPLIT, Field, Schema
from narrowcast.components.data.vocabulary import Index, index
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json

Values: TypeAlias = Sequence | pd.Series | pa.Array
MERGE_ROWS = 1 << 22
"""Pending counts of one vocabulary that are merged at a time, which bounds the memory of fitting."""


class Encoder:
    """Made by `fit` or `load`. `schema` is what it was fitted for; `layout` names the arrays of its batches."""

    def __init__(self, schema: Schema, tables: dict[str, pa.Table], scales: dict[str, tuple[float, float]]) -> None:
        self.schema = schema
        self.layout = layout_of(schema, {name: len(table) for name, table in tables.items()})
        self._fields = {f.name: f for f in schema.inputs}
        self._tables = {name: table.combine_chunks() for name, table in tables.items()}
        self._scales = scales
        self._indexes: dict[str, Index] = {}

    @classmethod
    def fit(cls, frame: Mapping[str, Values] | pd.DataFrame, schema: Schema) -> "Encoder":
        """Learn vocabularies and scales from the training rows of `frame` (all rows where it has no `split`)."""
        if SPLIT in frame:
            kept = np.asarray(frame[SPLIT]) == SPLITS[0]
            frame = {f.name: _arrow(f, _column(frame, f.name)).filter(pa.array(kept)) for f in schema.inputs}
        fitting = Fitting(schema)
        fitting.update(frame)
        return fitting.finish()

    def transform(self, columns: Mapping[str, Values]) -> Batch:
        """Encode one value a row for every input of the schema; a single value stands for all rows, and a single
        sequence stays one row that does so.

        A categorical may be text or a number, a sequence a list of them. None is a missing value: the id of "missing"
        where a nullable field had such in training, else out-of-vocabulary; an empty sequence; a numeric's 0 after
        scaling. NaN is missing too where the field is nullable. Sequences keep their first `max_length` elements, the
        history its last. Raises NarrowcastError naming the field that is absent, of the wrong type or length, or holds
        NaN or infinity.
        """
        parts = {name: self._encoded(field, _column(columns, name)) for name, field in self._fields.items()}
        rows = max(map(len, parts.values()))
        for name, part in parts.items():
            if len(part) not in (1, rows):
                raise NarrowcastError(
                    f"input '{name}' has {len(part)} values for {rows} rows: give one a row or one for all"
                )
        ids_BF = np.empty((rows, len(self.layout.categorical)), np.int32)
        for i, name in enumerate(self.layout.categorical):
            ids_BF[:, i] = parts[name]
        dense_BN = np.empty((rows, len(self.layout.numeric)), np.float32)
        for i, name in enumerate(self.layout.numeric):
            dense_BN[:, i] = parts[name]
        return Batch(ids_BF=ids_BF, dense_BN=dense_BN, sequences={name: parts[name] for name in self.layout.sequences})

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Training frequency of every row of every table, descending after row 0."""
        return {name: table.column("count").to_numpy() for name, table in self._tables.items()}

    def values(self, table: str, num_rows: int | None = None) -> list[str | None]:
        """The id's text by row of a table, of its first `num_rows` or all; None is out-of-vocabulary in row 0 and
        "missing" in any other."""
        return self._tables[table].column("value").slice(0, num_rows).to_pylist()

    def save(self, directory: str | Path) -> None:
        """Write `encoder.json` and a Parquet file `vocabulary_<table>` with the columns value and count."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in self._tables.items():
            pq.write_table(table, directory / f"vocabulary_{name}.parquet")
        numeric = {name: {"mean": mean, "std": std} for name, (mean, std) in self._scales.items()}
        write_json(directory / "encoder.json", {"schema": self.schema.to_text(), "numeric": numeric})

    @classmethod
    def load(cls, directory: str | Path) -> "Encoder":
        """Raises NarrowcastError when the directory holds no whole encoder."""
        directory = Path(directory)
        data = read_json(directory / "encoder.json")
        schema = Schema.from_text(data["schema"], where=f"{directory}/encoder.json")
        try:
            tables = {
                name: pq.read_table(directory / f"vocabulary_{name}.parquet") for name in vocabulary_names(schema)
            }
        except (OSError, pa.ArrowInvalid) as error:
            raise NarrowcastError(f"{directory} lacks a vocabulary ({error}): run the encode step again") from None
        return cls(schema, tables, {name: (s["mean"], s["std"]) for name, s in data["numeric"].items()})

    def _encoded(self, field: Field, values: Values) -> NDArray[Any]:
        """A field's ids (n, int32), scaled numbers (n, float32) or padded ids (n x max_length, int32).

        Arrow's kernels take ten microseconds and more however few the values, so a server's lists are read without
        them where they hold nothing odd.
        """
        quick = self._quick(field, values) if isinstance(values, list | np.ndarray) else None
        if quick is not None:
            return quick
        array = _arrow(field, values)
        if field.type == "categorical":
            return self._lookup(self.layout.table_of[field.name], array)
        if field.type == "sequence":
            return self._pad(field, array)
        return self._scale(field, np.asarray(pc.is_valid(array)), _finite(field, np.array(pc.fill_null(array, 0.0))))

    def _quick(self, field: Field, values: list[Any] | NDArray[Any]) -> NDArray[Any] | None:
        """The same for plain text, numbers and lists of text; None where Arrow must read them or say what is wrong."""
        if field.type == "numeric":
            return self._quick_numbers(field, values)
        table = self.layout.table_of[field.name]
        kinds = set(map(type, values))
        if field.type == "categorical":
            return self._quick_ids(table, values) if kinds <= {str, NoneType} else None
        if kinds != {list}:
            return None
        texts = list(itertools.chain.from_iterable(values))
        if not set(map(type, texts)) <= {str} or "" in texts:
            return None
        ids = self._quick_ids(table, texts)
        return None if ids is None else self._padded(field, np.fromiter(map(len, values), np.int64, len(values)), ids)

    def _quick_numbers(self, field: Field, values: list[Any] | NDArray[Any]) -> NDArray[np.float32] | None:
        missing: list[bool] | NDArray[np.bool_] = []
        if isinstance(values, list):
            kinds = set(map(type, values))
            if not kinds <= {int, float, NoneType}:
                return None
            if NoneType in kinds:
                missing = [value is None for value in values]
                values = [0.0 if value is None else value for value in values]
        elif values.dtype != np.float64 or values.ndim != 1:
            return None
        try:
            numbers = np.asarray(values, np.float64)
        except OverflowError:
            return None
        if not np.isfinite(numbers).all():
            return None
        known = np.logical_not(missing) if len(missing) else np.ones(len(numbers), np.bool_)
        return self._scale(field, known, numbers)

    def _quick_ids(self, table: str, texts: Any) -> NDArray[np.int32] | None:
        rows = self._index(table).find(texts)
        for i in np.flatnonzero(rows == 0).tolist():
            text = texts[i]
            if text and (".0" in text or not text.isascii()):
                return None  # perhaps another spelling, or no Unicode
        return rows

    def _index(self, table: str) -> Index:
        if table not in self._indexes:
            (values,) = self._tables[table].column("value").chunks  # as they are, not a second time
            self._indexes[table] = index(values)
        return self._indexes[table]

    def _lookup(self, table: str, text: pa.Array) -> NDArray[np.int32]:
        """Ids of any number of texts; each different one is looked up once."""
        encoded = text.dictionary_encode(null_encoding="encode")
        return self._index(table).find(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]

    def _scale(self, field: Field, known: NDArray[np.bool_], numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """`numbers` are finite, and 0 where not `known`."""
        mean, std = self._scales[field.name]
        with np.errstate(over="ignore"):
            values = np.where(known, (_transformed(field, numbers) - mean) / std, 0.0).astype(np.float32)
        if not np.isfinite(values).all():
            bad = numbers[int(np.argmin(np.isfinite(values)))]
            raise NarrowcastError(
                f"input '{field.name}' holds {bad}, too large for a 32-bit number: mend it or clip it"
            )
        return values

    def _pad(self, field: Field, lists: pa.Array) -> NDArray[np.int32]:
        lengths_B = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        return self._padded(field, lengths_B, self._lookup(self.layout.table_of[field.name], pc.list_flatten(lists)))

    def _padded(self, field: Field, lengths_B: NDArray[np.int64], ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Lists of ids, one after another, cut and padded."""
        padded_BL = np.full((len(lengths_B), field.max_length), PAD, np.int32)
        row = np.repeat(np.arange(len(lengths_B)), lengths_B)
        position = np.arange(len(row)) - (np.cumsum(lengths_B) - lengths_B)[row]
        if field.name == HISTORY:
            position -= np.maximum(lengths_B - field.max_length, 0)[row]
        kept = (position >= 0) & (position < field.max_length)
        padded_BL[row[kept], position[kept]] = ids[kept]
        return padded_BL


class Fitting:
    """Counts and moments of the training rows, gathered batch by batch."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._pending: dict[str, list[pa.Table]] = {name: [] for name in vocabulary_names(schema)}
        self._moments = {
            f.name: (0, 0.0, 0.0) for f in schema.of_type("numeric")
        }  # count, mean, sum of squares about it

    def update(self, columns: Mapping[str, Values] | pd.DataFrame) -> None:
        """Count more training rows."""
        for name in self._pending:
            field = self.schema.field(name)
            array = _arrow(field, _column(columns, name))
            self._count(name, pc.list_flatten(array) if field.type == "sequence" else array)
        for name, moments in self._moments.items():
            field = self.schema.field(name)
            numbers = _arrow(field, _column(columns, name))
            values = _transformed(field, _finite(field, np.asarray(numbers.drop_null())))
            self._moments[name] = _merged(moments, values)

    def finish(self) -> Encoder:
        """Raises NarrowcastError when there were no rows."""
        tables = {}
        for name, pending in self._pending.items():
            tables[name] = _vocabulary(_summed(pending), self.schema.field(name))
        scales = {name: self._final_scale(self.schema.field(name)) for name in self._moments}
        return Encoder(self.schema, tables, scales)

    def _count(self, name: str, text: pa.Array) -> None:
        counted = pc.value_counts(text)
        pending = self._pending[name]
        pending.append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))
        if len(pending) > 1 and sum(map(len, pending[1:])) > max(MERGE_ROWS, len(pending[0])):
            self._pending[name] = [_summed(pending)]

    def _final_scale(self, field: Field) -> tuple[float, float]:
        count, mean, squares = self._moments[field.name]
        if field.transform == "none" or count == 0:
            return 0.0, 1.0
        std = math.sqrt(squares / count)
        return mean, std if std > max(1e-9 * abs(mean), 1e-20) else 1.0  # a constant, but for rounding


def vocabulary_names(schema: Schema) -> tuple[str, ...]:
    """Names of the tables: the fields with a vocabulary of their own, categorical ones first, in the schema's order."""
    fields = (*schema.of_type("categorical"), *schema.of_type("sequence"))
    return tuple(f.name for f in fields if schema.vocabulary_of(f) == f.name)


def layout_of(schema: Schema, table_rows: Mapping[str, int]) -> Layout:
    """The layout that a schema implies, given its tables' sizes."""
    categorical, sequences = schema.of_type("categorical"), schema.of_type("sequence")
    return Layout(
        categorical=tuple(f.name for f in categorical),
        numeric=tuple(f.name for f in schema.of_type("numeric")),
        sequences=tuple(f.name for f in sequences),
        table_of={f.name: schema.vocabulary_of(f) for f in (*categorical, *sequences)},
        table_rows={name: table_rows[name] for name in vocabulary_names(schema)},
    )


def _column(columns: Mapping[str, Values] | pd.DataFrame, name: str) -> Values:
    if name not in columns:
        raise NarrowcastError(f"input '{name}' is missing: give one value a row")
    return columns[name]


def _arrow(field: Field, values: Values) -> pa.Array:
    """The values as Arrow text, numbers, or lists of text, as the field's type says."""
    try:
        array = values
        if field.type == "numeric" and isinstance(values, list) and {int, float} <= set(map(type, values)):
            array = [float(value) if type(value) is int else value for value in values]  # Arrow takes no large one
        if not isinstance(array, pa.Array | pa.ChunkedArray):
            array = pa.array(array, from_pandas=field.type != "numeric" or field.nullable)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if field.type == "categorical":
            return to_text(array)
        if field.type == "sequence":
            return to_lists(array)
        array = plain(array)
        if pa.types.is_string(array.type) or pa.types.is_nested(array.type) or pa.types.is_temporal(array.type):
            raise pa.ArrowInvalid(f"{array.type} values are not numbers")
        array = array.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(array), None, array) if field.nullable else array
    except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError) as error:
        wanted = {"categorical": "text", "numeric": "numbers", "sequence": "lists of text"}[field.type]
        raise NarrowcastError(f"input '{field.name}' must be {wanted}: {' '.join(str(error).split())[:120]}") from None


def _finite(field: Field, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(numbers).all():
        raise NarrowcastError(
            f"input '{field.name}' holds NaN or infinity: give a number, or null where it is not known"
        )
    return numbers


def _transformed(field: Field, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """On the scale that the mean and deviation are taken on."""
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if field.transform == "log" else numbers


def _merged(moments: tuple[int, float, float], values: NDArray[np.float64]) -> tuple[int, float, float]:
    """Count, mean and squared deviations of two sets (Chan, Golub and LeVeque 1979, equation 2.1)."""
    if not len(values):
        return moments
    count, mean, squares = moments
    other = float(values.mean())
    total = count + len(values)
    apart = other - mean
    squares += float(((values - other) ** 2).sum()) + apart * apart * count * len(values) / total
    return total, mean + apart * len(values) / total, squares


def _summed(counts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])


def _vocabulary(counts: pa.Table, field: Field) -> pa.Table:
    """Row 0 with the rows under the threshold, then values by descending count, ties by text, missing first."""
    value, count = counts.column("value"), counts.column("count")
    kept = pc.greater_equal(count, field.min_count)
    if not field.nullable:
        kept = pc.and_(kept, pc.is_valid(value))
    known = counts.filter(kept)
    keys = pa.table({"count": known.column("count"), "value": pc.fill_null(known.column("value"), "")})
    order = pc.sort_indices(keys, sort_keys=[("count", "descending"), ("value", "ascending")])
    under = (pc.sum(count).as_py() or 0) - (pc.sum(known.column("count")).as_py() or 0)
    first = pa.table({"value": pa.array([None], pa.string()), "count": pa.array([under], pa.int64())})
    return pa.concat_tables([first, known.take(order)]).combine_chunks()
