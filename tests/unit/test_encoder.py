"""The encoder against its definition, spelt out row by row."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.data.encoded import PAD
from narrowcast.components.data.encoder import Encoder, Fitting
from narrowcast.components.data.schema import Schema
from narrowcast.components.data.vocabulary import LARGE_ROWS
from narrowcast.errors import NarrowcastError

SCHEMA = Schema.from_text("""
name: shop
sources: {events: {path: log.csv, format: csv}}
user: user
item: item
timestamp: {column: time}
label: {column: bought}
statistics: false
fields:
  - {name: user, type: categorical, owner: user, min_count: 2}
  - {name: item, type: categorical, owner: item}
  - {name: city, type: categorical, nullable: true}
  - {name: tags, type: sequence, owner: item, max_length: 2}
  - {name: price, type: numeric, transform: log}
  - {name: stock, type: numeric, nullable: true}
  - {name: rank, type: numeric, transform: none}
history: {max_length: 3}
""")

CITIES = Schema.from_text("""
name: cities
sources: {events: {path: log.csv, format: csv}}
label: {column: bought}
fields: [{name: city, type: categorical, min_count: 1}]
""")

ids = st.sampled_from(["a", "b", "c", "d", "e", "10", "2"])
numbers = st.integers(-(10**8), 10**8).map(lambda n: n / 64)
rows = st.fixed_dictionaries(
    {
        "user": ids,
        "item": ids,
        "city": st.one_of(st.none(), ids),
        "tags": st.lists(ids, max_size=4),
        "price": numbers,
        "stock": st.one_of(st.none(), numbers),
        "rank": numbers,
        "history": st.lists(ids, max_size=6),
    }
)
frames = st.lists(rows, min_size=1, max_size=30)


def columns(frame: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in frame] for name in SCHEMA.input_names}


def reference_vocabulary(counts: Counter, min_count: int) -> list:
    known = [value for value, count in counts.items() if count >= min_count]
    return [0, *sorted(known, key=lambda v: (-counts[v], v or ""))]


def same(a, b) -> bool:
    return (
        np.array_equal(a.ids_BF, b.ids_BF)
        and np.array_equal(a.dense_BN.view(np.int32), b.dense_BN.view(np.int32))
        and all(np.array_equal(a.sequences[name], b.sequences[name]) for name in a.sequences)
    )


@settings(deadline=None)
@given(frames, frames)
def test_ids_by_their_definition(training, later):
    encoder = Encoder.fit(columns(training), SCHEMA)
    batch = encoder.transform(columns(later))
    vocabulary = {}
    for table, field in (("user", "user"), ("item", "item"), ("city", "city"), ("tags", "tags")):
        values = [v for row in training for v in (row[field] if field == "tags" else [row[field]])]
        counts = Counter(values)
        vocabulary[table] = reference_vocabulary(counts, SCHEMA.field(field).min_count)
        known = vocabulary[table][1:]
        assert encoder.values(table)[1:] == known
        expected = [len(values) - sum(counts[v] for v in known), *(counts[v] for v in known)]
        assert encoder.counts()[table].tolist() == expected
        assert encoder.layout.table_rows[table] == len(expected)

    def row_of(table, value):
        return vocabulary[table].index(value) if value in vocabulary[table] else 0

    for i, row in enumerate(later):
        assert batch.ids_BF[i].tolist() == [row_of(name, row[name]) for name in ("user", "item", "city")]
        tags = [row_of("tags", t) for t in row["tags"][:2]]
        assert batch.sequences["tags"][i].tolist() == tags + [PAD] * (2 - len(tags))
        history = [row_of("item", t) for t in row["history"][-3:]]
        assert batch.sequences["history"][i].tolist() == history + [PAD] * (3 - len(history))


@settings(deadline=None)
@given(frames, frames)
def test_numbers_by_their_definition(training, later):
    dense_BN = Encoder.fit(columns(training), SCHEMA).transform(columns(later)).dense_BN

    def scaled(name, change):
        seen = [change(row[name]) for row in training if row[name] is not None]
        mean = math.fsum(seen) / len(seen) if seen else 0.0
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in seen) / len(seen)) if seen else 1.0
        std = std if std > 1e-9 * abs(mean) else 1.0
        return [0.0 if row[name] is None else (change(row[name]) - mean) / std for row in later]

    def log(x):
        return math.copysign(math.log1p(abs(x)), x)

    expected = [scaled("price", log), scaled("stock", float), [row["rank"] for row in later]]
    np.testing.assert_allclose(dense_BN, np.transpose(expected), rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(frames, frames, st.data())
def test_one_row_is_encoded_as_among_many(training, later, data):
    encoder = Encoder.fit(columns(training), SCHEMA)
    batch = encoder.transform(columns(later))
    i = data.draw(st.integers(0, len(later) - 1))
    alone = encoder.transform(columns([later[i]]))
    assert same(alone, batch.take(slice(i, i + 1)))
    many = encoder.transform({**columns([later[i]]), "item": [row["item"] for row in later]})
    repeated = encoder.transform(columns([{**later[i], "item": row["item"]} for row in later]))
    assert [len(values) for values in many.sequences.values()] == [1] * len(many.sequences)
    rows = np.zeros(len(later), np.int64)
    sequences = {name: values[rows] for name, values in many.sequences.items()}
    assert same(replace(many, sequences=sequences), repeated)
    picked = np.array([i, 0])
    taken, expected = many.take(picked), repeated.take(picked)
    assert np.array_equal(taken.ids_BF, expected.ids_BF)
    assert all(np.array_equal(taken.sequences[name][0], values[0]) for name, values in expected.sequences.items())


@settings(deadline=None)
@given(frames, frames, st.integers(1, 29))
def test_fitting_in_parts_is_fitting_at_once(training, more, size):
    frame = training + more
    fitting = Fitting(SCHEMA)
    for start in range(0, len(frame), size):
        fitting.update(columns(frame[start : start + size]))
    parts, whole = fitting.finish(), Encoder.fit(columns(frame), SCHEMA)
    for table in whole.layout.table_rows:
        assert parts.values(table) == whole.values(table)
    np.testing.assert_allclose(
        parts.transform(columns(frame)).dense_BN, whole.transform(columns(frame)).dense_BN, rtol=1e-4, atol=1e-4
    )


@settings(deadline=None, max_examples=20)
@given(frames)
def test_containers_do_not_matter(tmp_path_factory, frame):
    encoder = Encoder.fit(columns(frame), SCHEMA)
    folder = tmp_path_factory.mktemp("encoder")
    encoder.save(folder)
    lists = columns(frame)
    arrow = {name: pa.array(values) for name, values in lists.items()}
    series = {
        name: pd.Series(values, dtype=float if name in ("price", "stock", "rank") else object)
        for name, values in lists.items()
    }
    numpy_lists = {**series, "tags": pd.Series([np.array(t, dtype=object) for t in lists["tags"]])}
    frame_too = pd.DataFrame(series)
    expected = encoder.transform(lists)
    for form in (arrow, series, numpy_lists, frame_too):
        assert same(encoder.transform(form), expected)
    loaded = Encoder.load(folder)
    assert loaded.layout == encoder.layout
    assert same(loaded.transform(lists), expected)


ROW = {"user": "a", "item": "b", "city": "x", "tags": ["t"], "price": 1.0, "stock": 2.0, "rank": 3.0, "history": ["b"]}
ENCODER = Encoder.fit(columns([ROW, {**ROW, "city": None, "price": 5.0, "stock": None}]), SCHEMA)


odd = st.sampled_from(["a", "10", "10.0", "10.00", "-10.0", "2.0\n", "b.0", ".0", "1.00", "", "ä", "\u0662.0", "new"])
odd_numbers = st.sampled_from([0, 1, -2, 2.5, 1e30, 10**18, math.nan])
odd_rows = st.fixed_dictionaries(
    {
        "user": odd | st.none(),
        "item": odd,
        "city": odd | st.none(),
        "tags": st.none() | st.lists(odd | st.none(), max_size=4),
        "price": st.none() | odd_numbers.filter(lambda number: number == number),
        "stock": st.none() | odd_numbers,
        "rank": st.none() | odd_numbers.filter(lambda number: number == number),
        "history": st.lists(odd, max_size=6),
    }
)


@settings(deadline=None)
@given(frames, st.lists(odd_rows, min_size=1, max_size=8))
def test_lists_are_encoded_as_arrow_is(training, later):
    encoder = Encoder.fit(columns(training), SCHEMA)
    lists = columns(later)
    kinds = {"categorical": pa.string(), "numeric": pa.float64(), "sequence": pa.list_(pa.string())}
    floats = {f.name: [n if n is None else float(n) for n in lists[f.name]] for f in SCHEMA.of_type("numeric")}
    arrow = {f.name: pa.array((lists | floats)[f.name], kinds[f.type], from_pandas=False) for f in SCHEMA.inputs}
    some = {name: np.array(lists[name], float) for name in ("price", "rank") if None not in lists[name]}
    expected = encoder.transform(arrow)
    for batch in (encoder.transform(lists), encoder.transform(lists | some)):
        np.testing.assert_array_equal(batch.ids_BF, expected.ids_BF)
        np.testing.assert_array_equal(batch.dense_BN, expected.dense_BN)
        for name in expected.sequences:
            np.testing.assert_array_equal(batch.sequences[name], expected.sequences[name])


def test_numbers_and_text_name_the_same_id():
    encoder = Encoder.fit(columns([{**ROW, "item": "7"}, {**ROW, "item": "8"}]), SCHEMA)
    for spelling in ([7, 8], [7.0, 8.0], ["7", "8"], ["7.0", "8.0"], np.array([7, 8]), pd.Series([7.0, 8.0])):
        assert encoder.transform({**columns([ROW]), "item": spelling}).ids_BF[:, 1].tolist() == [1, 2]
    assert encoder.transform({**columns([ROW]), "history": [[7.0, 8]]}).sequences["history"].tolist() == [[1, 2, PAD]]


def test_missing_values():
    nothing = {name: [None] for name in SCHEMA.input_names}
    batch = ENCODER.transform(nothing)
    assert ENCODER.values("city") == [None, None, "x"]
    assert batch.ids_BF.tolist() == [[0, 0, 1]]
    assert batch.dense_BN.tolist() == [[0.0, 0.0, 0.0]]
    assert batch.sequences["tags"].tolist() == [[PAD, PAD]]
    nan = ENCODER.transform({**columns([ROW]), "stock": [math.nan], "city": [math.nan]})
    assert nan.dense_BN[0, 1] == 0.0
    assert nan.ids_BF[0, 2] == 1


def test_missing_is_unknown_where_training_had_none_missing():
    encoder = Encoder.fit(columns([ROW, ROW]), SCHEMA)
    assert encoder.transform({**columns([ROW]), "city": [None]}).ids_BF[0, 2] == 0


def test_only_training_rows_are_fitted():
    frame = pd.DataFrame([{**ROW, "split": "train"}, {**ROW, "item": "z", "price": 99.0, "split": "test"}])
    encoder = Encoder.fit(frame, SCHEMA)
    assert encoder.values("item") == [None, "b"]
    assert same(encoder.transform(frame), Encoder.fit(frame[:1], SCHEMA).transform(frame))


def test_no_rows():
    batch = ENCODER.transform(columns([]))
    assert batch.ids_BF.shape == (0, 3)
    assert batch.dense_BN.shape == (0, 3)
    assert batch.sequences["history"].shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("price", [math.nan], "'price' holds NaN or infinity"),
        ("stock", [math.inf], "'stock' holds NaN or infinity"),
        ("price", ["cheap"], "'price' must be numbers"),
        ("price", [[1.0]], "'price' must be numbers"),
        ("rank", [1e300], "'rank' holds 1e+300, too large"),
        ("item", [["b"]], "'item' must be text"),
        ("item", ["b", 1.5j], "'item' must be text"),
        ("item", [b"\xff"], "'item' must be text"),
        ("item", ["\ud800"], "'item' must be text"),
        ("tags", ["t"], "'tags' must be lists of text"),
        ("tags", [[["t"]]], "'tags' must be lists of text"),
        ("tags", [["t"]] * 3, "'item' has 2 values for 3 rows"),
        ("item", [], "'item' has 0 values for 1 rows"),
    ],
)
def test_wrong_inputs_are_named(name, values, told):
    given = {**columns([ROW]), name: values}
    if "for 3 rows" in told:
        given["item"] = ["b", "c"]
    with pytest.raises(NarrowcastError) as raised:
        ENCODER.transform(given)
    assert told in str(raised.value)


def test_absent_inputs_are_named():
    given = columns([ROW])
    del given["city"]
    with pytest.raises(NarrowcastError, match="input 'city' is missing"):
        ENCODER.transform(given)


def test_a_vocabulary_read_in_pieces_is_in_memory_once(tmp_path):
    texts = [f"{number:040d}" for number in range(4 * LARGE_ROWS)]
    Encoder.fit({"city": texts}, CITIES).save(tmp_path)
    assert pq.read_table(tmp_path / "vocabulary_city.parquet").column("value").num_chunks > 1
    encoder = Encoder.load(tmp_path)
    before = pa.total_allocated_bytes()
    ids_n = encoder.transform({"city": texts[::-1]}).ids_BF[:, 0]
    assert pa.total_allocated_bytes() - before < 40 * LARGE_ROWS
    known = encoder.values("city")
    assert [known[i] for i in ids_n] == texts[::-1]


def test_broken_encoder_is_named(tmp_path):
    with pytest.raises(NarrowcastError, match=r"encoder\.json does not exist"):
        Encoder.load(tmp_path)
    ENCODER.save(tmp_path)
    (tmp_path / "vocabulary_item.parquet").unlink()
    with pytest.raises(NarrowcastError, match="lacks a vocabulary"):
        Encoder.load(tmp_path)
