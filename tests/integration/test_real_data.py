"""Real logs from raw files to encoded data: every step accounts for every row."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from narrowcast.components.data.describe import describe
from narrowcast.components.data.encode import encode
from narrowcast.components.data.encoded import SPLITS, EncodedData
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema, Source
from narrowcast.components.features.build import build_features
from narrowcast.components.validate.validate import validate_dataset, validate_frame
from narrowcast.records import StepRecord

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real data in {DATA}")]


def criteo() -> Schema:
    """The shipped schema on a Parquet sample of the same columns."""
    source = Source(path="criteo_137k.parquet", format="parquet")
    return replace(Schema.load("criteo"), sources={"events": source}, download=None)


def movielens_latest() -> Schema:
    """A schema as drafted, unread."""
    return Schema.from_text(describe(DATA / "ml_latest_small" / "ratings.csv"))


@pytest.mark.parametrize(
    ("folder", "schema", "rows", "refused"),
    [
        ("kuairand_pure", lambda: Schema.load("kuairand_pure"), 228_329, 5_885),
        ("criteo_137k", criteo, 137_139, 0),
        ("ml_latest_small", movielens_latest, 100_836, 0),
    ],
)
def test_every_row_is_accounted_for(folder, schema, rows, refused, tmp_path):
    schema = schema()
    ingest(DATA / folder, schema, tmp_path / "dataset")
    validate_dataset(tmp_path / "dataset", schema, tmp_path / "valid_dataset", tmp_path / "raw_docs")
    build_features(tmp_path / "valid_dataset", schema, 0, tmp_path / "frame", tmp_path / "feature_store")
    validate_frame(tmp_path / "frame", schema, tmp_path / "valid_frame", tmp_path / "frame_docs")
    encode(tmp_path / "valid_frame", schema, tmp_path / "encoded")
    records = [
        StepRecord.load(tmp_path / name) for name in ("dataset", "valid_dataset", "frame", "valid_frame", "encoded")
    ]
    assert records[0].rows_in == rows
    for before, after in pairwise(records):
        assert after.rows_in == before.rows_out
    assert sum(sum(record.refused.values()) for record in records) == refused
    data = EncodedData(tmp_path / "encoded")
    assert sum(len(data.split(name)) for name in SPLITS) == rows - refused
