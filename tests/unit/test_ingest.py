"""Ingestion: typed tables out of every raw format, every row accounted for, one sentence for every broken file."""

import datetime
import gzip
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.components.data.columns import to_lists, to_number, to_text, to_time
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest

KUAIRAND = Path(__file__).resolve().parents[3] / "shared" / "data" / "kuairand_pure"

SHOP = """
name: shop
sources: {events: {path: log.csv, format: csv}}
user: user
item: item
timestamp: {column: time}
label: {column: bought}
fields:
  - {name: user, type: categorical, owner: user}
  - {name: item, type: categorical, owner: item}
  - {name: age, type: numeric, owner: user, nullable: true}
  - {name: tags, type: sequence, owner: item, separator: "|"}
  - {name: device, column: "dev.type", type: categorical, nullable: true}
  - {name: price, type: numeric}
checks: {row_key: [user, time]}
"""
LOG = """user,item,time,bought,age,tags,dev.type,price,unused
1,a,100,1,30,x|y,tv,1.5,?
2,b,100,0,,,NA,2,?
1.0,a,101,0,31,z,,-3e2,?
"""


def run(tmp_path: Path, log: str | bytes, schema: str = SHOP, name: str = "log.csv") -> Path:
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    (raw / name).write_bytes(log.encode() if isinstance(log, str) else log)
    ingest(raw, Schema.from_text(schema), tmp_path / "dataset")
    return tmp_path / "dataset"


def refused(tmp_path: Path, log: str | bytes, schema: str = SHOP, name: str = "log.csv") -> str:
    with pytest.raises(NarrowcastError) as raised:
        run(tmp_path, log, schema, name)
    assert not (tmp_path / "dataset").exists(), "something half-written was left"
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    return str(raised.value)


def test_tables_are_typed(tmp_path):
    dataset = run(tmp_path, LOG)
    events = pq.read_table(dataset / "events.parquet")
    assert [(f.name, str(f.type)) for f in events.schema] == [
        ("row_id", "int64"),
        ("event_timestamp", "timestamp[us, tz=UTC]"),
        ("label", "uint8"),
        ("user", "string"),
        ("item", "string"),
        ("device", "string"),
        ("price", "double"),
        ("time", "string"),
    ]
    assert events["row_id"].to_pylist() == [0, 1, 2]
    assert events["event_timestamp"].cast(pa.int64()).to_pylist() == [100_000_000, 100_000_000, 101_000_000]
    assert events["user"].to_pylist() == ["1", "2", "1"]
    assert events["device"].to_pylist() == ["tv", "NA", None]
    assert events["price"].to_pylist() == [1.5, 2.0, -300.0]
    assert StepRecord.load(dataset).rows_in == StepRecord.load(dataset).rows_out == 3


def test_entities_without_a_file_take_their_first_event(tmp_path):
    dataset = run(tmp_path, LOG)
    assert pq.read_table(dataset / "users.parquet").to_pylist() == [
        {"user": "1", "age": 30.0},
        {"user": "2", "age": None},
    ]
    items = pq.read_table(dataset / "items.parquet").to_pylist()
    assert items == [{"item": "a", "tags": ["x", "y"]}, {"item": "b", "tags": None}]


def test_formats_agree(tmp_path):
    expected = run(tmp_path, LOG)
    by_format = {
        "log.csv.gz": ("csv", gzip.compress(LOG.encode())),
        "log.tsv": ("tsv", LOG.replace(",", "\t").encode()),
        "crlf.csv": ("csv", ("\ufeff" + LOG).replace("\n", "\r\n").encode()),
    }
    for name, (format_, content) in by_format.items():
        schema = SHOP.replace("log.csv, format: csv", f"{name}, format: {format_}")
        other = run(tmp_path / name, content, schema, name) if (tmp_path / name).mkdir() is None else None
        assert digest(other) == digest(expected), name


def test_parquet_agrees_with_csv(tmp_path):
    (tmp_path / "csv").mkdir()
    expected = run(tmp_path / "csv", LOG)
    table = pa.table(
        {
            "user": pa.array([1.0, 2.0, 1.0]),
            "item": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([100, 100, 101], pa.int32()),
            "bought": pa.array([True, False, False]),
            "age": pa.array([30, None, 31], pa.int8()),
            "tags": pa.array([["x", "y"], None, ["z"]]),
            "dev.type": pa.array(["tv", "NA", ""], pa.large_string()),
            "price": pa.array([1.5, 2, -300], pa.float32()),
        }
    )
    raw = tmp_path / "raw"
    raw.mkdir()
    pq.write_table(table, raw / "log.parquet")
    ingest(raw, Schema.from_text(SHOP.replace("log.csv, format: csv", "log.parquet, format: parquet")), tmp_path / "d")
    for name in ("events", "users", "items"):
        ours, theirs = (pq.read_table(d / f"{name}.parquet") for d in (tmp_path / "d", expected))
        assert ours.to_pylist() == theirs.to_pylist()


def test_file_without_a_header(tmp_path):
    schema = """
name: ads
sources: {events: {path: day.tsv, format: tsv, columns: [click, I1, C1]}}
label: {column: click}
fields:
  - {name: I1, type: numeric, nullable: true}
  - {name: C1, type: categorical, nullable: true}
"""
    dataset = run(tmp_path, '1\t5\t68fd1e64\n0\t\t"a\n1\t-1\t\n', schema, "day.tsv")
    assert sorted(p.name for p in dataset.iterdir()) == ["events.parquet", "step.json"]
    assert pq.read_table(dataset / "events.parquet").to_pylist() == [
        {"row_id": 0, "label": 1, "I1": 5.0, "C1": "68fd1e64"},
        {"row_id": 1, "label": 0, "I1": None, "C1": '"a'},
        {"row_id": 2, "label": 1, "I1": -1.0, "C1": None},
    ]


def test_label_rules(tmp_path):
    stars = LOG.replace("100,1,", "100,4.5,")
    dataset = run(tmp_path, stars, SHOP.replace("column: bought", "column: bought, at_least: 4"))
    assert pq.read_table(dataset / "events.parquet")["label"].to_pylist() == [1, 0, 0]
    beyond = pq.read_table(run(tmp_path, LOG.replace("100,1,", "100,7,")) / "events.parquet")["label"]
    assert beyond.to_pylist() == [7, 0, 0]
    assert beyond.type == pa.int64()
    missing = pq.read_table(run(tmp_path, LOG.replace("100,1,", "100,,")) / "events.parquet")["label"]
    assert missing.to_pylist() == [None, 0, 0]
    words = pq.read_table(run(tmp_path, LOG.replace("100,1,", "100,True,")) / "events.parquet")["label"]
    assert words.to_pylist() == [1, 0, 0]


def test_broken_values_are_counted_and_located(tmp_path):
    rows = LOG.splitlines()
    for column, bad, told in (
        (
            7,
            "cheap",
            "column 'price': 2 values are no finite numbers (mend the file, or make the field 'price' categorical)",
        ),
        (7, "inf", "column 'price': 2 values are no finite numbers"),
        (2, "noon", "column 'time': 2 values are no times of 1900 to 2200 in unit 's'"),
        (2, "1650812741436", "column 'time': 2 values are no times of 1900 to 2200 in unit 's'"),
        (3, "yes", "column 'bought': 2 values are no finite numbers (mend the file, or choose another label column)"),
        (3, "0.5", "column 'bought': 2 values are no whole numbers of at most 64 bits (set label.at_least"),
        (3, "1e300", "column 'bought': 2 values are no whole numbers"),
    ):
        broken = [rows[0], rows[1]]
        for row in rows[2:]:
            cells = row.split(",")
            cells[column] = bad
            broken.append(",".join(cells))
        sentence = refused(tmp_path, "\n".join(broken))
        assert told in sentence
        assert "log.csv" in sentence
        assert sentence.endswith(f"the first is '{bad}' in row 2")


def test_broken_files(tmp_path):
    assert "raw/log.csv is empty" in refused(tmp_path, "")
    assert "raw/log.csv holds no rows" in refused(tmp_path, LOG.splitlines()[0] + "\n")
    assert "cannot be read as csv" in refused(tmp_path, LOG + "1,2\n")
    assert "no column 'price', which the schema names: did you mean 'prize'" in refused(
        tmp_path, LOG.replace("price", "prize")
    )
    assert "2 columns 'price'" in refused(tmp_path, LOG.replace("unused", "price"))
    assert "cannot be read as csv" in refused(tmp_path, LOG.encode() + b"\xff,\xff,1,1,1,1,1,1,1\n")
    assert "log.csv cannot be read as csv" in refused(tmp_path, LOG.replace("unused", "usé").encode("latin-1"))
    zipped = SHOP.replace("log.csv", "log.csv.gz")
    assert "log.csv.gz cannot be read" in refused(
        tmp_path, gzip.compress(LOG.encode() * 50)[:-20], zipped, "log.csv.gz"
    )
    absent = refused(tmp_path, LOG, SHOP.replace("log.csv", "lag.csv"))
    assert "raw/lag.csv does not exist" in absent


def test_broken_parquet(tmp_path):
    schema = SHOP.replace("log.csv, format: csv", "log.parquet, format: parquet")
    buffer = pa.BufferOutputStream()
    frame = pd.DataFrame(
        {
            "user": [1],
            "item": [1],
            "time": [1],
            "bought": [1],
            "age": [1],
            "tags": ["a"],
            "dev.type": [1],
            "price": [[1]],
        }
    )
    pq.write_table(pa.Table.from_pandas(frame), buffer)
    whole = buffer.getvalue().to_pybytes()
    for part in (whole[:-9], whole[: len(whole) // 2], b"PAR1"):
        assert "log.parquet cannot be read as parquet" in refused(tmp_path, part, schema, "log.parquet")
    assert "column 'price': 1 value is no finite numbers" in refused(tmp_path, whole, schema, "log.parquet")
    listed = schema.replace("price, type: numeric", "price, type: categorical")
    assert "column 'price' is list<element: int64>, not text; choose another column" in refused(
        tmp_path, whole, listed, "log.parquet"
    )


def test_text_without_separator_is_no_sequence(tmp_path):
    assert "give the field a `separator`" in refused(tmp_path, LOG, SHOP.replace(', separator: "|"', ""))


def test_second_run_is_equal_and_replaces(tmp_path, tiny_raw, tiny_schema):
    ingest(tiny_raw, tiny_schema, tmp_path / "a")
    first = digest(tmp_path / "a")
    ingest(tiny_raw, tiny_schema, tmp_path / "a")
    assert digest(tmp_path / "a") == first


def test_batches_keep_rows_in_order(tmp_path, monkeypatch):
    """Many blocks give what one block gives, and rows of errors count from the file's start."""
    from narrowcast.components.data import raw

    body = "".join(f"{i % 7},{i % 5},{100 + i},{i % 2},{i % 90},t{i % 3},tv,{i},?\n" for i in range(2000))
    log = LOG.splitlines()[0] + "\n" + body
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    whole = run(tmp_path / "one", log)
    monkeypatch.setattr(raw, "BLOCK_BYTES", 4096)
    parts = run(tmp_path / "many", log)
    for name in ("events", "users", "items"):
        assert pq.read_table(parts / f"{name}.parquet").equals(pq.read_table(whole / f"{name}.parquet"))
    broken = log.replace(",1500,?", ",cheap,?")
    (tmp_path / "bad").mkdir()
    assert "1 value is no finite numbers" in (sentence := refused(tmp_path / "bad", broken))
    assert sentence.endswith("'cheap' in row 1501")


@given(st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53))))
def test_integers_have_one_spelling(numbers):
    text = [None if n is None else str(n) for n in numbers]
    assert to_text(pa.array(numbers, pa.int64())).to_pylist() == text
    assert to_text(pa.array([None if n is None else float(n) for n in numbers], pa.float64())).to_pylist() == text
    assert to_text(pa.array([None if n is None else f"{n}.0" for n in numbers], pa.string())).to_pylist() == text


@given(st.lists(st.text(max_size=6)))
def test_text_is_kept_but_for_whole_numbers(texts):
    once = to_text(pa.array(texts, pa.string()))
    assert to_text(once).equals(once)
    for text, kept in zip(texts, once.to_pylist(), strict=True):
        assert kept == (text or None) or text.startswith(f"{kept}.0")


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))))
def test_numbers_survive_their_text(numbers):
    text = pa.array([None if n is None else repr(n) for n in numbers], pa.string())
    parsed, bad = to_number(text)
    assert parsed.to_pylist() == numbers
    assert not any(bad.to_pylist())


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text("ab1.0 ", max_size=4)), max_size=4))), st.data()
)
def test_lists_by_their_definition(lists, data):
    start = data.draw(st.integers(0, len(lists)))
    expected = [
        None if row is None else [t for t in to_text(pa.array(row, pa.string())).to_pylist() if t] for row in lists
    ]
    assert to_lists(pa.array(lists, pa.list_(pa.string())).slice(start)).to_pylist() == expected[start:]


def test_numbers_as_people_write_them():
    parsed, bad = to_number(pa.array([" 5", "5.", ".5", "1e3", "NaN", "n/a", "True", "x", "1,5", "0x10", "-inf"]))
    assert parsed.to_pylist() == [5.0, 5.0, 0.5, 1000.0, None, None, 1.0, None, None, None, None]
    assert bad.to_pylist() == [False] * 7 + [True] * 4


def test_times_by_unit():
    def read(values, unit):
        return to_time(pa.array(values), unit)[0].cast(pa.int64()).to_pylist()

    second = 1_000_000
    assert read(["100.5", "7", None], "s") == [100 * second + 500_000, 7 * second, None]
    assert read([1650812741436], "ms") == [1650812741436 * 1000]
    assert read(["1970-01-02", "1970-01-01T02:00:00+02:00", "1970-01-01 00:00:01.5Z"], "iso") == [
        86400 * second,
        0,
        1_500_000,
    ]
    assert read([14102123, 9010100], "YYMMDDHH") == [1413932400 * second, 1230768000 * second]
    assert read(pd.to_datetime(["1970-01-01 00:00:01"]), "ms") == [second]
    for value, unit in (("2**70", "s"), ("1e300", "ms"), ("tomorrow", "iso"), ("14139900", "YYMMDDHH")):
        times, bad = to_time(pa.array([value]), unit)
        assert times.to_pylist() == [None]
        assert bad.to_pylist() == [True]


@pytest.mark.parametrize("unit", ["s", "iso", "YYMMDDHH"])
def test_what_is_no_moment_is_no_time(unit):
    for value in ([1], {"a": 1}, b"\xff", datetime.time(12), datetime.timedelta(1)):
        times, bad = to_time(pa.array([value]), unit)
        assert times.to_pylist() == [None]
        assert bad.to_pylist() == [True]


@pytest.mark.skipif(not KUAIRAND.is_dir(), reason=f"no KuaiRand-Pure in {KUAIRAND}")
def test_kuairand(tmp_path):
    schema = Schema.load("kuairand_pure")
    ingest(KUAIRAND, schema, tmp_path / "dataset")
    assert StepRecord.load(tmp_path / "dataset").rows_out == 228_329
    assert pq.read_table(tmp_path / "dataset" / "events.parquet")["label"].to_numpy().mean() == pytest.approx(
        0.442, abs=1e-3
    )
    raw = pq.read_table(KUAIRAND / "user_sequences.parquet")
    histories = pq.read_table(tmp_path / "dataset" / "histories.parquet")
    assert [list(map(int, row)) for row in histories["history"].to_pylist()] == raw["watch_seq"].to_pylist()
