"""The benchmarks' data sets, from raw files to encoded data by the steps of a run, kept between benchmarks."""

import tempfile
from dataclasses import replace
from pathlib import Path

from narrowcast.components.data.encode import encode
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema, Source
from narrowcast.components.features.build import build_features
from narrowcast.components.validate.validate import validate_dataset, validate_frame
from narrowcast.errors import NarrowcastError, nearest
from narrowcast.records import writing_directory

NAMES = ("criteo_137k", "kuairand_pure", "ml_latest_small", "ml_100k")
PROJECT = Path(__file__).resolve().parents[1]
RAW = (PROJECT / "data" / "raw", PROJECT.parent / "shared" / "data")
"""Where raw files are looked for: a folder a data set."""


def schema_of(name: str) -> Schema:
    """The schema of a data set in `NAMES`; criteo_137k is split at random, the others by time.

    criteo_137k is a sample of Criteo's log as one Parquet file, so its ids count from their second row on.
    """
    if name not in NAMES:
        raise NarrowcastError(f"no benchmark data named '{name}': {nearest(name, NAMES)}")
    if name != "criteo_137k":
        return Schema.load(name)
    schema = Schema.load("criteo")
    return replace(
        schema,
        name=name,
        sources={"events": Source(path="criteo_137k.parquet", format="parquet")},
        fields=tuple(replace(f, min_count=2) if f.type == "categorical" else f for f in schema.fields),
        download=None,
    )


def prepare(name: str, folder: Path, raw: Path | None = None) -> Path:
    """The prepared data set `name` below `folder`: a folder with `frame` and `encoded`, made where there is none.

    Raw files are those in `raw`, or in a folder named after the data set below one of `RAW`. The folder's name holds
    the schema's hash, so another schema's data are never taken for these.
    """
    schema = schema_of(name)
    target = folder / schema.feature_service
    if not target.is_dir():
        prepare_schema(raw or _find_raw(name, schema), schema, target)
    return target


def prepare_schema(raw: Path, schema: Schema, target: Path) -> None:
    """Raw files to the validated `frame` and `encoded` in `target`, as a run makes them; the whole of it or nothing."""
    with writing_directory(target) as made, tempfile.TemporaryDirectory() as scratch:
        between = Path(scratch)
        ingest(raw, schema, between / "dataset")
        validate_dataset(between / "dataset", schema, between / "valid_dataset", between / "raw_docs")
        build_features(between / "valid_dataset", schema, 0, between / "frame", between / "feature_store")
        validate_frame(between / "frame", schema, made / "frame", between / "frame_docs")
        encode(made / "frame", schema, made / "encoded")


def rare_field(schema: Schema, data: EncodedData) -> str:
    """The field whose rare ids a benchmark looks at: the item key, or without one the field with the most ids."""
    rows = data.layout.table_rows
    return schema.item or max(data.layout.categorical, key=lambda name: rows[data.layout.table_of[name]])


def _find_raw(name: str, schema: Schema) -> Path:
    files = sorted(source.path for source in schema.sources.values())
    for folder in RAW:
        if all((folder / name / file).is_file() for file in files):
            return folder / name
    raise NarrowcastError(
        f"no raw files of {name}: put {', '.join(files)} into {RAW[0] / name} (`narrowcast data get` does it for a "
        "shipped data set), or name their folder"
    )
