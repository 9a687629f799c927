"""Raw files to typed tables: one row an event, one row a user, one row an item."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from narrowcast.components.data.columns import LISTS, TIME, to_lists, to_number, to_text, to_time
from narrowcast.components.data.progress import watched
from narrowcast.components.data.raw import read_batches
from narrowcast.components.data.schema import HISTORY, LABEL, ROW_ID, TIMESTAMP, Field, Owner, Schema, Source, Table
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, writing_directory

OWNED: tuple[tuple[Table, Owner], ...] = (("users", "user"), ("items", "item"))
ARROW_TYPES = {"categorical": pa.string(), "numeric": pa.float64(), "sequence": LISTS}


def ingest(raw: str | Path, schema: Schema, target: str | Path) -> None:
    """Write `events.parquet`, and `users`, `items` and `histories` where the schema has them, to `target`.

    Types are settled here; values are not judged, that is validation's part. Raises NarrowcastError for a file or
    column that is absent or broken, and for values that cannot be of their column's type, with their number and the
    first of them.
    """
    raw = Path(raw)
    with writing_directory(target) as folder:
        rows = {"events": _write_events(raw, schema, folder)}
        for table, owner in OWNED:
            if table in schema.sources:
                rows[table] = _write_entities(raw, schema, folder, table, owner)
        if schema.history and schema.history.initial_column:
            rows["histories"] = _write_histories(raw, schema, folder, schema.history.initial_column)
        for path in folder.glob("*.parquet"):
            rows.setdefault(path.stem, pq.read_metadata(path).num_rows)
        StepRecord(step="ingest", rows_in=rows["events"], rows_out=rows["events"], details={"rows": rows}).save(folder)


class _Faults:
    """Values of one raw file that could not be typed, counted to its end so that one sentence can say how many."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def note(self, column: str, values: pa.Array, bad: pa.Array, first_row: int, why: str) -> None:
        at = pc.index(bad, True).as_py()
        if at >= 0:
            self.count[column] += pc.sum(bad).as_py()
            self.first.setdefault(column, f"{why}; the first is '{str(values[at])[:60]}' in row {first_row + at + 1}")

    def check(self) -> None:
        for column, sentence in self.first.items():
            count = self.count[column]
            values = "1 value is" if count == 1 else f"{count} values are"
            raise NarrowcastError(f"{self.path}, column '{column}': {values} {sentence}")


class _Reader:
    """Typed columns of one raw file, batch by batch."""

    def __init__(self, raw: Path, source: Source, columns: Iterable[str]) -> None:
        self.path = raw / source.path
        self.batches = watched(read_batches(raw, source, list(dict.fromkeys(columns))), f"reading {source.path}")
        self.faults = _Faults(self.path)
        self.rows = 0
        self.batch: pa.RecordBatch = None

    def advance(self) -> bool:
        """Step to the next batch; at the end raise what was wrong in any."""
        if self.batch is not None:
            self.rows += len(self.batch)
        self.batch = next(self.batches, None)
        if self.batch is None:
            self.faults.check()
        return self.batch is not None

    def text(self, column: str) -> pa.Array:
        return self._convert(column, to_text, "text; choose another column, or make it a sequence")

    def lists(self, column: str, separator: str | None, kind: str) -> pa.Array:
        return self._convert(column, lambda values: to_lists(values, separator), kind)

    def number(self, column: str, mend: str) -> pa.Array:
        values = self.batch.column(column)
        numbers, bad = to_number(values)
        self.faults.note(column, values, bad, self.rows, f"no finite numbers (mend the file, or {mend})")
        return numbers

    def time(self, column: str, unit: str) -> pa.Array:
        values = self.batch.column(column)
        times, bad = to_time(values, unit)
        why = f"no times of 1900 to 2200 in unit '{unit}' (mend the file, or timestamp.unit in the schema)"
        self.faults.note(column, values, bad, self.rows, why)
        return times

    def field(self, spec: Field) -> pa.Array:
        if spec.type == "numeric":
            return self.number(spec.raw_column, f"make the field '{spec.name}' categorical")
        if spec.type == "categorical":
            return self.text(spec.raw_column)
        kind = "lists or text" if spec.separator else "lists; give the field a `separator` in the schema"
        return self.lists(spec.raw_column, spec.separator, kind)

    def _convert(self, column: str, convert: Callable[[pa.Array], pa.Array], kind: str) -> pa.Array:
        values = self.batch.column(column)
        try:
            return convert(values)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise NarrowcastError(f"{self.path}, column '{column}' is {values.type}, not {kind}") from None


class _NotBinaryError(Exception):
    """A label beyond 0 and 1 has turned up."""


def _write_events(raw: Path, schema: Schema, folder: Path) -> int:
    """Returns the rows. The label is int64 where it is not 0 or 1 throughout, which is known only at such a value."""
    try:
        return _stream_events(raw, schema, folder, pa.uint8())
    except _NotBinaryError:
        return _stream_events(raw, schema, folder, pa.int64())


def _stream_events(raw: Path, schema: Schema, folder: Path, label_type: pa.DataType) -> int:
    key_names = [key for key in (schema.user, schema.item) if key]
    fields = [f for f in schema.fields if f.owner == "context" or f.name in key_names]
    own = {f.name for f in fields} | {LABEL, TIMESTAMP}
    extra = [column for column in dict.fromkeys(schema.checks.row_key or ()) if column not in own]
    derived: dict[Table, _FirstSeen] = {}
    for table, owner in OWNED:
        if _key(schema, owner) and table not in schema.sources:
            derived[table] = _FirstSeen(_entity_fields(schema, owner), _key(schema, owner) or "")
    columns = [f.raw_column for f in (*fields, *(f for first in derived.values() for f in first.fields))]
    time_columns = [schema.timestamp.column] if schema.timestamp else []
    types = [pa.field(ROW_ID, pa.int64())]
    types += [pa.field(TIMESTAMP, TIME)] if schema.timestamp else []
    types += [pa.field(LABEL, label_type), *_arrow_schema(fields), *(pa.field(column, pa.string()) for column in extra)]
    reader = _Reader(raw, schema.sources["events"], [*columns, *time_columns, schema.label.column, *extra])
    with pq.ParquetWriter(folder / "events.parquet", pa.schema(types)) as writer:
        while reader.advance():
            arrays = [pa.array(range(reader.rows, reader.rows + len(reader.batch)), pa.int64())]
            if schema.timestamp:
                arrays.append(reader.time(schema.timestamp.column, schema.timestamp.unit))
            arrays.append(_label(reader, schema, label_type))
            arrays += [reader.field(f) for f in fields] + [reader.text(column) for column in extra]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(types)))
            for first in derived.values():
                first.update(reader)
    for table, first in derived.items():
        pq.write_table(first.table(), folder / f"{table}.parquet")
    return reader.rows


def _label(reader: _Reader, schema: Schema, label_type: pa.DataType) -> pa.Array:
    column, threshold = schema.label.column, schema.label.at_least
    numbers = reader.number(column, "choose another label column")
    if threshold is not None:
        return pc.greater_equal(numbers, threshold).cast(label_type)
    whole = pc.and_(pc.equal(numbers, pc.floor(numbers)), pc.less(pc.abs(numbers), 2.0**63))
    why = "no whole numbers of at most 64 bits (set label.at_least in the schema to turn them into clicks)"
    reader.faults.note(column, reader.batch.column(column), pc.fill_null(pc.invert(whole), False), reader.rows, why)
    numbers = pc.if_else(whole, numbers, None)
    if label_type == pa.uint8() and pc.any(pc.and_(pc.not_equal(numbers, 0), pc.not_equal(numbers, 1))).as_py():
        raise _NotBinaryError
    return numbers.cast(label_type)


class _FirstSeen:
    """Entities of a table that has no file of its own: of each, the values of the first event that shows it."""

    def __init__(self, fields: list[Field], key: str) -> None:
        self.fields = fields
        self.key = key
        self.seen: set[str] = set()
        self.batches: list[pa.RecordBatch] = []

    def update(self, reader: _Reader) -> None:
        batch = pa.RecordBatch.from_arrays([reader.field(f) for f in self.fields], schema=_arrow_schema(self.fields))
        fresh = []
        for row, key in enumerate(batch.column(self.key).to_pylist()):
            if key is not None and key not in self.seen:
                self.seen.add(key)
                fresh.append(row)
        self.batches.append(batch.take(pa.array(fresh, pa.int64())))

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches, schema=_arrow_schema(self.fields)).combine_chunks()


def _write_entities(raw: Path, schema: Schema, folder: Path, table: Table, owner: Owner) -> int:
    fields = _entity_fields(schema, owner)
    reader = _Reader(raw, schema.sources[table], [f.raw_column for f in fields])
    types = _arrow_schema(fields)
    with pq.ParquetWriter(folder / f"{table}.parquet", types) as writer:
        while reader.advance():
            writer.write_batch(pa.RecordBatch.from_arrays([reader.field(f) for f in fields], schema=types))
    return reader.rows


def _write_histories(raw: Path, schema: Schema, folder: Path, column: str) -> int:
    key = next(f for f in schema.fields if f.name == schema.user)
    types = pa.schema([pa.field(key.name, pa.string()), pa.field(HISTORY, LISTS)])
    reader = _Reader(raw, schema.sources["histories"], [key.raw_column, column])
    with pq.ParquetWriter(folder / "histories.parquet", types) as writer:
        while reader.advance():
            arrays = [reader.text(key.raw_column), reader.lists(column, None, "lists; write a list column")]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=types))
    return reader.rows


def _key(schema: Schema, owner: Owner) -> str | None:
    return schema.user if owner == "user" else schema.item


def _entity_fields(schema: Schema, owner: Owner) -> list[Field]:
    """The key first, then the owner's other fields in the schema's order."""
    return sorted((f for f in schema.fields if f.owner == owner), key=lambda f: f.name != _key(schema, owner))


def _arrow_schema(fields: Iterable[Field]) -> pa.Schema:
    return pa.schema([pa.field(f.name, ARROW_TYPES[f.type]) for f in fields])
