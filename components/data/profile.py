"""What the columns of one raw file hold, read as ingestion reads it, in bounded memory however long the file is."""

import csv
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from narrowcast.components.data.columns import MISSING_NUMBERS, plain
from narrowcast.components.data.raw import read_batches
from narrowcast.components.data.schema import Source
from narrowcast.errors import NarrowcastError

Kind = Literal["number", "text", "time", "list", "other"]
SAMPLE_ROWS = 20_000
MEMORY_LIMIT = "1GB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """`distinct` is an estimate within a fifth; `nulls` counts missing values; the last four are of numbers."""

    name: str
    kind: Kind
    nulls: int
    distinct: int
    whole: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0


class Profile:
    """The `rows` and `columns` of one file, how to read it (`source`), and a `sample`: its first rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source, names = _source(path)
        first = next(read_batches(path.parent, self.source, names))
        self.sample: pd.DataFrame = first.slice(0, SAMPLE_ROWS).to_pandas()
        self._schema = pa.schema([(f.name, plain(pa.array([], f.type)).type) for f in first.schema])
        kinds = {field.name: _kind(field.type) for field in self._schema}
        timely = {name for name in names if kinds[name] == "text" and _reads_as_time(self.sample[name])}
        statistics = ", ".join(_statistics(name, kinds[name], name in timely) for name in names)
        self.rows, *found = self._query(f"SELECT count(*), {statistics} FROM events")
        self.columns = [_column(name, kinds[name], self.rows, f) for name, f in zip(names, found, strict=True)]

    def constant_within(self, key: str, names: Sequence[str]) -> set[str]:
        """Those of the columns that have one value, or none, for every value of the column `key`."""
        if not names:
            return set()
        same = ", ".join(f"min(hash({_quote(n)})) = max(hash({_quote(n)})) AS c{i}" for i, n in enumerate(names))
        every = ", ".join(f"bool_and(c{i})" for i in range(len(names)))
        constant = self._query(f"SELECT {every} FROM (SELECT {same} FROM events GROUP BY {_quote(key)})")
        return {name for name, is_constant in zip(names, constant, strict=True) if is_constant}

    def is_unique(self, name: str) -> bool:
        (distinct,) = self._query(f"SELECT count(DISTINCT {_quote(name)}) FROM events")
        return bool(distinct == self.rows)

    def _query(self, sql: str) -> tuple[Any, ...]:
        """The one row that `sql` makes of the table `events` in one pass through the file."""
        failures: list[NarrowcastError] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for batch in read_batches(self.path.parent, self.source, self._schema.names):
                    yield pa.RecordBatch.from_arrays([plain(column) for column in batch], schema=self._schema)
            except NarrowcastError as error:
                failures.append(error)  # raised below: DuckDB would wrap it

        with tempfile.TemporaryDirectory() as spill, duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'; SET temp_directory = '{spill}'")
            connection.execute("SET enable_progress_bar = false")
            connection.register("events", pa.RecordBatchReader.from_batches(self._schema, batches()))
            row = connection.execute(sql).fetchone()
        if failures:
            raise failures[0]
        return row or ()


def _source(path: Path) -> tuple[Source, Sequence[str]]:
    """How to read a file, and its columns; they are numbered where the first line holds numbers, so is no header.

    A column without a name, such as the index that pandas writes, cannot be a field and is left out.
    """
    if not path.is_file():
        raise NarrowcastError(f"{path} is no file: name one CSV, TSV or Parquet file with a row an event")
    if path.stat().st_size == 0:
        raise NarrowcastError(f"{path} is empty: fetch it again")
    if path.suffix in {".parquet", ".pq"}:
        try:
            columns = tuple(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise NarrowcastError(f"{path} cannot be read as Parquet ({reason}): fetch the file again") from None
        if not columns:
            raise NarrowcastError(f"{path} has no columns: fetch it again")
        return Source(path=path.name, format="parquet"), columns
    try:
        with pa.input_stream(path, compression="detect") as stream:
            line = stream.read(1 << 16).decode("utf-8-sig").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        line = ""
    if "\t" not in line and "," not in line:
        raise NarrowcastError(
            f"{path} is no table: it must be Parquet, or UTF-8 text with commas or tabs between two or more columns"
        )
    tabs = "\t" in line
    fields = tuple(line.split("\t")) if tabs else tuple(next(csv.reader([line])))
    headless = any(_is_number(value) for value in fields)
    columns = tuple(f"column_{i}" for i in range(1, len(fields) + 1)) if headless else fields
    source = Source(path=path.name, format="tsv" if tabs else "csv", columns=columns if headless else None)
    return source, tuple(column for column in columns if column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind(type_: pa.DataType) -> Kind:
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return "list"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "time"
    if pa.types.is_string(type_):
        return "text"
    numeric = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)
    return "number" if numeric or pa.types.is_decimal(type_) else "other"


def _reads_as_time(texts: pd.Series) -> bool:
    """Whether the first texts do, so that the slow look at all of them is worth it."""
    return bool(pd.to_datetime(texts.dropna().head(100), format="ISO8601", errors="coerce", utc=True).notna().all())


def _statistics(name: str, kind: Kind, timely: bool) -> str:
    """SQL for one column's statistics: a struct; text also tells how much of it reads as numbers or as times."""
    column = _quote(name)
    parts = {"present": f"count({column})", "distinct": f"approx_count_distinct({column})"}
    number = column
    if kind == "text":
        words = ", ".join(f"'{word}'" for word in MISSING_NUMBERS.to_pylist())
        parts["missing_words"] = f"count(*) FILTER (lower(trim({column})) IN ({words}))"
        parts["times"] = f"count(TRY_CAST({column} AS TIMESTAMP WITH TIME ZONE))" if timely else "-1"
        number = f"trim({column})"
    if kind in {"text", "number"}:
        number = f"TRY_CAST({number} AS DOUBLE)"
        if kind == "text":
            number = f"CASE lower(trim({column})) WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE {number} END"
        finite = f"FILTER (isfinite({number}))"
        parts["numbers"] = f"count(*) {finite}"
        parts["whole"] = f"bool_and({number} = floor({number})) {finite}"
        parts |= {key: f"{of}({number}) {finite}" for key, of in (("low", "min"), ("high", "max"), ("mean", "avg"))}
    return "struct_pack(" + ", ".join(f'"{key}" := {sql}' for key, sql in parts.items()) + ")"


def _column(name: str, kind: Kind, rows: int, found: dict[str, Any]) -> Column:
    present = found["present"]
    if kind == "text" and found["numbers"] and found["numbers"] + found["missing_words"] == present:
        kind, present = "number", found["numbers"]
    elif kind == "text" and present and found["times"] == present:
        kind = "time"
    elif kind == "number":
        present = found["numbers"]
    if kind != "number" or not present:
        return Column(name=name, kind=kind, nulls=rows - present, distinct=found["distinct"])
    numbers = {key: found[key] for key in ("whole", "low", "high", "mean")}
    return Column(name=name, kind=kind, nulls=rows - present, distinct=found["distinct"], **numbers)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
