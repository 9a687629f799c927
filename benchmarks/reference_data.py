"""criteo_137k at the reference setting: the integers bucketed, all 39 fields categorical, split at random 80/10/10."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import prepare_schema, schema_of
from narrowcast.components.data.schema import Field, Schema
from narrowcast.errors import NarrowcastError

FILE = "criteo_137k.parquet"


def reference_schema() -> Schema:
    """An id seen once in training is out-of-vocabulary; a missing value is an id of its own."""
    schema = schema_of("criteo_137k")
    fields = tuple(Field(name=f.name, type="categorical", nullable=True, min_count=2) for f in schema.fields)
    return replace(schema, name="criteo_reference", fields=fields)


def bucketed(column: pa.ChunkedArray) -> pa.Array:
    """Counts above 2 as floor(log(x)^2), the others as they are, null as null."""
    missing = np.asarray(column.is_null())
    count = np.asarray(column.fill_null(0)).astype(np.int64)
    bucket = np.where(count > 2, np.floor(np.log(np.maximum(count, 1)) ** 2).astype(np.int64), count)
    return pa.array(bucket, mask=missing)


def prepare_reference(folder: Path, raw: Path) -> Path:
    """The encoded data below `folder`, made from `raw`/criteo_137k.parquet where there are none."""
    schema = reference_schema()
    target = folder / schema.feature_service
    if not target.is_dir():
        if not (raw / FILE).is_file():
            raise NarrowcastError(f"{raw} holds no {FILE}: name the folder that does with --raw")
        table = pq.read_table(raw / FILE)
        for i, name in enumerate(table.column_names):
            if pa.types.is_integer(table.schema.field(name).type) and name.startswith("I"):
                table = table.set_column(i, name, bucketed(table.column(name)))
        with tempfile.TemporaryDirectory() as scratch:
            pq.write_table(table, Path(scratch) / FILE)
            prepare_schema(Path(scratch), schema, target)
    return target / "encoded"
