"""Drafting a schema from files of all kinds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrowcast.components.data.describe import describe
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema
from narrowcast.errors import NarrowcastError

ROWS = 3000


def shop_log() -> pd.DataFrame:
    """A log nobody has written a schema for."""
    rng = np.random.default_rng(5)
    customer = rng.integers(0, 200, ROWS)
    product = np.minimum(rng.zipf(1.3, ROWS) - 1, 79)
    tags = ["|".join(rng.choice(list("abcdef"), rng.integers(1, 4), replace=False)) for _ in range(80)]
    bought = rng.random(ROWS) < 0.2 + 0.4 * (product % 3 == 0)
    return pd.DataFrame(
        {
            "Request ID": [f"r{i:06d}" for i in range(ROWS)],
            "customerId": customer + 5000,
            "product_id": [f"P-{p}" for p in product],
            "viewed at": pd.date_range("2025-03-01", periods=ROWS, freq="7min").strftime("%Y-%m-%dT%H:%M:%SZ"),
            "price": (product + 1.5).round(2),
            "labels": np.array(tags)[product],
            "channel": rng.choice(["web", "app"], ROWS),
            "discount": np.where(rng.random(ROWS) < 0.3, np.nan, rng.random(ROWS).round(3)),
            "member since": 2000 + customer % 20,
            "currency": "EUR",
            "checkout_state": np.where(bought, "paid", "none"),
            "view_seconds": rng.exponential(30, ROWS).round(1),
            "purchased": bought.astype(int),
        }
    )


def test_own_csv_described_edited_ingested(tmp_path):
    shop_log().to_csv(tmp_path / "shop.csv", index=False)
    draft = describe(tmp_path / "shop.csv")
    schema = Schema.from_text(draft)
    assert schema.name == "shop"
    assert (schema.user, schema.item) == ("customerId", "product_id")
    assert (schema.timestamp.column, schema.timestamp.unit) == ("viewed at", "iso")
    assert schema.label.column == "purchased"
    assert set(schema.leakage) == {"checkout_state", "view_seconds"}
    assert schema.checks.row_key == ("Request ID",)
    assert schema.history is not None
    fields = {f.raw_column: f for f in schema.fields}
    assert set(fields) == {
        *("customerId", "product_id", "price", "labels", "channel", "discount", "member since"),
    }
    assert {name: f.owner for name, f in fields.items()} == {
        "customerId": "user",
        "member since": "user",
        "product_id": "item",
        "price": "item",
        "labels": "item",
        "channel": "context",
        "discount": "context",
    }
    assert (fields["labels"].type, fields["labels"].separator, fields["labels"].max_length) == ("sequence", "|", 3)
    assert fields["discount"].nullable
    assert (fields["price"].type, fields["price"].min) == ("numeric", 0)
    assert "left out currency: one value throughout" in draft
    assert "tells the label by itself (AUC 1.000)" in draft

    edited = draft.replace("name: shop\n", "name: my_shop\n").replace(
        "history: {max_length: 50}", "history: {max_length: 5}"
    )
    mine = Schema.from_text(edited)
    assert (mine.name, mine.history.max_length) == ("my_shop", 5)
    ingest(tmp_path, mine, tmp_path / "dataset")
    events = pd.read_parquet(tmp_path / "dataset" / "events.parquet")
    assert len(events) == ROWS
    assert events["label"].sum() == shop_log()["purchased"].sum()


def test_parquet_with_lists_and_times(tmp_path):
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "uid": rng.integers(0, 50, 500),
            "when": pa.array(pd.date_range("2025-01-01", periods=500, freq="h")),
            "topics": pa.array([["x", "y"][: 1 + i % 2] for i in range(500)]),
            "clicked": rng.random(500) < 0.5,
            "event_timestamp": rng.random(500),
            "kind": pa.array(rng.choice(["a", "b"], 500)).dictionary_encode(),
            "nested": [{"x": 1}] * 500,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    schema = Schema.from_text(describe(tmp_path / "log.parquet", "my log"))
    assert schema.name == "my_log"
    assert schema.sources["events"].format == "parquet"
    assert (schema.timestamp.column, schema.label.column, schema.user, schema.item) == ("when", "clicked", "uid", None)
    fields = {f.name: f for f in schema.fields}
    assert set(fields) == {"uid", "topics", "event_timestamp_raw", "kind"}
    assert (fields["topics"].type, fields["topics"].separator) == ("sequence", None)
    assert fields["event_timestamp_raw"].column == "event_timestamp"


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (1_700_000_000 + np.arange(200) * 60, "s"),
        (1_700_000_000_000 + np.arange(200) * 60, "ms"),
        (1_700_000_000_000_000 + np.arange(200) * 60, "us"),
        (14_102_100 + np.arange(200) % 24, "YYMMDDHH"),
        (np.arange(200), None),
        (14_102_100 + np.arange(200), None),  # there is no hour 24
    ],
)
def test_units_of_time(tmp_path, values, unit):
    pd.DataFrame({"hour": values, "site": ["a", "b"] * 100, "click": [0, 0, 1, 1] * 50}).to_csv(
        tmp_path / "t.csv", index=False
    )
    timestamp = Schema.from_text(describe(tmp_path / "t.csv")).timestamp
    assert (timestamp and timestamp.unit) == unit


def test_tsv_without_header_and_rating(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "headless.tsv").write_text(
        "".join(f"{rng.integers(0, 2)}\t{rng.random():.3f}\t{rng.choice(['x', 'y'])}\n" for _ in range(300))
    )
    schema = Schema.from_text(describe(tmp_path / "headless.tsv"))
    assert schema.sources["events"].columns == ("column_1", "column_2", "column_3")
    assert schema.label.column == "column_1"
    rated = pd.DataFrame(
        {"userId": rng.integers(0, 9, 300), "movieId": rng.integers(0, 9, 300), "rating": [1, 2, 3, 4, 5] * 60}
    )
    rated.to_csv(tmp_path / "rated.csv", index=False)
    schema = Schema.from_text(describe(tmp_path / "rated.csv"))
    assert (schema.label.column, schema.label.at_least) == ("rating", 3)
    assert schema.leakage == ("rating",)


def test_a_file_as_pandas_writes_it(tmp_path):
    """With a column of row numbers that has no name, and true and false in words; a file may also be named null."""
    rng = np.random.default_rng(3)
    log = pd.DataFrame({"user_id": rng.integers(0, 9, 300), "score": rng.random(300), "clicked": rng.random(300) < 0.3})
    log.to_csv(tmp_path / "null.csv")
    schema = Schema.from_text(describe(tmp_path / "null.csv"))
    assert (schema.name, schema.user) == ("null", "user_id")
    assert (schema.label.column, schema.label.at_least) == ("clicked", None)
    assert [f.name for f in schema.fields] == ["user_id", "score"]
    ingest(tmp_path, schema, tmp_path / "dataset")
    assert pq.read_table(tmp_path / "dataset" / "events.parquet")["label"].to_pylist() == log["clicked"].tolist()


def test_two_words_are_no_list(tmp_path):
    cities = ["New York", "San Jose", "El Paso", "Fort Worth"] * 100
    genres = ["drama comedy", "drama", "comedy", "war drama", "war", "war comedy", "war drama comedy", "drama war"] * 50
    pd.DataFrame({"town": cities, "genres": genres, "click": np.random.default_rng(0).integers(0, 2, 400)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    fields = {f.name: f for f in Schema.from_text(describe(tmp_path / "t.csv")).fields}
    assert (fields["town"].type, fields["genres"].type) == ("categorical", "sequence")


def write_bytes(content: bytes, suffix: str = "csv"):
    def write(folder: Path) -> Path:
        path = folder / f"bad.{suffix}"
        path.write_bytes(content)
        return path

    return write


def write_truncated(folder: Path) -> Path:
    pq.write_table(pa.table({"click": [0, 1] * 500}), folder / "whole.parquet")
    return write_bytes((folder / "whole.parquet").read_bytes()[:-20], "parquet")(folder)


def write_table(table: pa.Table):
    def write(folder: Path) -> Path:
        pq.write_table(table, folder / "bad.parquet")
        return folder / "bad.parquet"

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda folder: folder / "none.csv", "is no file"),
        (lambda folder: folder, "is no file"),
        (write_bytes(b""), "is empty"),
        (write_bytes(b"user,click\n"), "holds no rows"),
        (write_bytes(b"just some words\nand more\n"), "is no table"),
        (write_bytes(b"a;b\n1;2\n"), "is no table"),
        (write_bytes(bytes(range(256)) * 10), "is no table"),
        (write_bytes(b"a,b\n1,2\n1,2,3\n"), "Expected 2 columns, got 3"),
        (write_bytes(b"a,a\n1,2\n"), "2 columns 'a'"),
        (write_bytes(b"who,what\nx,y\nz,w\n"), "no column of numbers"),
        (write_bytes(b"click,when\n1,2025-01-01\n0,2025-01-02\n"), "no column to make a field of"),
        (write_bytes(b"PAR1 but not really", "parquet"), "cannot be read as Parquet"),
        (write_truncated, "cannot be read as Parquet"),
        (write_table(pa.table({})), "has no columns"),
        (write_table(pa.table({"click": pa.array([], pa.int64())})), "holds no rows"),
    ],
)
def test_files_that_give_no_schema(tmp_path, write, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        describe(write(tmp_path))


def test_a_line_broken_late_is_named(tmp_path):
    """Beyond the first block that is read."""
    lines = b"user,click\n" + b"someone,1\nother,0\n" * 1_100_000 + b"one,2,three\n"
    with pytest.raises(NarrowcastError, match="Expected 2 columns, got 3"):
        describe(write_bytes(lines)(tmp_path))


def peak_mb(path: Path) -> float:
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from narrowcast.components.data.describe import describe\n"
        "describe(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout)


def test_memory_is_bounded(tmp_path):
    """Rows that take 150 MB once read, for far less more memory."""
    users = [f"user{i % 5000}" for i in range(1 << 17)]
    remarks = [f"a remark of no importance whatever, numbered {i % 50}" for i in range(1 << 17)]
    group = pa.table({"user_id": users, "click": np.random.default_rng(3).integers(0, 2, 1 << 17), "remark": remarks})
    for name, groups in (("small", 2), ("large", 14)):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", group.schema) as writer:
            for _ in range(groups):
                writer.write_table(group)
    assert peak_mb(tmp_path / "large.parquet") - peak_mb(tmp_path / "small.parquet") < 75
