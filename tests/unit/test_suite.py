import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrowcast.components.data.schema import Schema
from narrowcast.components.validate.site import Site
from narrowcast.components.validate.suite import (
    entity_structure,
    entity_values,
    events_structure,
    events_values,
    frame_structure,
    frame_values,
)
from narrowcast.components.validate.tables import column_types, known_entities, load_values

SCHEMA = Schema.from_text("""
name: small
sources: {events: {path: e.csv, format: csv}, users: {path: u.csv, format: csv}}
user: uid
item: iid
timestamp: {column: time}
label: {column: click}
leakage: [dwell]
fields:
  - {name: uid, type: categorical, owner: user}
  - {name: age, type: numeric, owner: user, min: 0, max: 120}
  - {name: city, type: categorical, owner: user, nullable: true}
  - {name: iid, type: categorical, owner: item}
  - {name: device, type: categorical, values: [phone, tv]}
  - {name: tags, type: sequence, values: [a, b]}
  - {name: price, type: numeric}
history: {max_length: 3}
checks: {row_key: [uid, iid, time], label_rate: [0.2, 0.8]}
""")
ROWS = 40
TIMES = pd.date_range("2020-01-01", periods=ROWS, freq="h", tz="UTC").astype("datetime64[us, UTC]")
EVENTS = pd.DataFrame(
    {
        "uid": [f"u{i % 4}" for i in range(ROWS)],
        "iid": [f"i{i % 7}" for i in range(ROWS)],
        "device": pd.Series(["phone", "tv"] * (ROWS // 2), dtype=object),
        "tags.length": np.full(ROWS, 2.0),
        "tags.foreign": np.zeros(ROWS, np.int64),
        "price": np.linspace(-5, 5, ROWS),
        "label": pd.Series([0, 1] * (ROWS // 2), dtype=object),
        "event_timestamp": TIMES,
        "time": [str(i) for i in range(ROWS)],
        "uid.known": pd.array([True] * ROWS, "boolean"),
    }
)
USERS = pd.DataFrame({"uid": [f"u{i}" for i in range(10)], "age": 30.0, "city": ["x", None] * 5})
FRAME = EVENTS.drop(columns=["time", "uid.known"]).assign(
    row_id=np.arange(ROWS),
    age=30.0,
    city=None,
    split=["train"] * 30 + ["validation"] * 5 + ["test"] * 5,
    **{"split.order": pd.array([0] * 30 + [1] * 5 + [2] * 5, "Int64"), "history.length": 3.0},
    **{f"{owner}_{name}": 0.5 for owner in ("user", "item") for name in ("events", "click_rate")},
    **{f"{owner}_as_of": TIMES - pd.Timedelta("1h") for owner in ("user", "item")},
)
SUITES = {
    "events": (EVENTS, events_values(SCHEMA, ["user"])),
    "users": (USERS, entity_values(SCHEMA, "user")),
    "frame": (FRAME, frame_values(SCHEMA)),
}
LATE = pd.Timestamp("2150-01-01", tz="UTC")
NO_TIME = pd.NaT
FAULTS = [  # table, column to spoil, value, column and fault of the check that fails, rows it counts
    ("events", "label", 2, "label", "neither 0 nor 1", 1),
    ("events", "label", None, "label", "missing", 1),
    ("events", "event_timestamp", LATE, "event_timestamp", "outside 1970..2100", 1),
    ("events", "event_timestamp", NO_TIME, "event_timestamp", "missing", 1),
    ("events", "uid", None, "uid", "missing", 1),
    ("events", "device", "radio", "device", "not among phone, tv", 1),
    ("events", "device", None, "device", "missing", 1),
    ("events", "tags.length", np.nan, "tags", "missing", 1),
    ("events", "tags.foreign", 2, "tags", "not among a, b", 1),
    ("events", "price", np.nan, "price", "missing", 1),
    ("events", "price", 1e300, "price", "outside", 1),
    ("events", "uid.known", False, "uid", "without a row in users", 1),
    ("users", "uid", "u0", "uid", "repeat an earlier one", 1),
    ("users", "uid", None, "uid", "missing", 1),
    ("users", "age", 121, "age", "outside 0..120", 2),
    ("users", "age", -1, "age", "outside 0..120", 2),
    ("frame", "age", np.nan, "age", "missing", 1),
    ("frame", "user_click_rate", 1.5, "user_click_rate", "outside 0..1", 1),
    ("frame", "item_events", -1, "item_events", "outside", 1),
    ("frame", "history.length", 4, "history", "longer than 3", 1),
    ("frame", "history.length", np.nan, "history", "missing", 1),
    ("frame", "row_id", 0, "row_id", "repeat another", 2),
    ("frame", "split.order", 2, "split", "earlier part", 1),
    ("frame", "user_as_of", TIMES[20], "user_as_of", "not before", 1),
    ("frame", "item_as_of", TIMES[30], "item_as_of", "not before", 1),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("docs"))
    numbers = iter(range(1000))
    return lambda values, checks: site.run(f"suite {next(numbers)}", "table", values, checks)


def failures(outcomes):
    return [outcome for outcome in outcomes if not outcome.passed]


@pytest.mark.parametrize("table", SUITES)
def test_sound_tables_pass(run, table):
    values, checks = SUITES[table]
    assert failures(run(values, checks)) == []


@pytest.mark.parametrize("table", SUITES)
def test_every_fault_fails_its_own_check(run, table):
    values, checks = SUITES[table]
    values = values.copy()
    faults = [fault[1:] for fault in FAULTS if fault[0] == table]
    for row, (spoiled, value, *_) in enumerate(faults, start=2):
        values[spoiled] = values[spoiled].astype(object) if value is None else values[spoiled]
        values.loc[row, spoiled] = value
    failed = failures(run(values, checks))
    explained = set()
    for _, _, column, fault, count in faults:
        (outcome,) = [o for o in failed if o.check.column == column and fault in o.check.fault]
        assert f"column '{column}' has {count} of {len(values)} " in outcome.sentence
        explained.add(id(outcome))
    assert {id(outcome) for outcome in failed} == explained


def test_faults_of_a_table_as_a_whole(run):
    assert [o.check.column for o in failures(run(EVENTS.assign(label=1), SUITES["events"][1]))] == ["label"]
    assert "(found 1)" in failures(run(EVENTS.assign(label=1), SUITES["events"][1]))[0].sentence
    no_test = FRAME.assign(split=FRAME["split"].replace("test", "validation"))
    assert [o.check.column for o in failures(run(no_test, SUITES["frame"][1]))] == ["split"]
    shuffled = FRAME.assign(event_timestamp=TIMES[[0, 2, 1, *range(3, ROWS)]])
    failed = failures(run(shuffled, SUITES["frame"][1]))
    assert "event_timestamp" in [o.check.column for o in failed]
    assert not any(o.check.quarantine for o in failed)
    assert "have no rows" in failures(run(EVENTS.iloc[:0], SUITES["events"][1]))[0].sentence


def test_repeated_rows_are_those_after_the_first(run):
    values = pd.concat([EVENTS, EVENTS.iloc[[3, 3, 5]]], ignore_index=True)
    (failed,) = failures(run(values, SUITES["events"][1]))
    assert (failed.check.column, failed.unexpected, failed.check.repeats) == ("uid, iid, time", 3, True)


def test_offending_rows_are_named_by_their_index_label(tmp_path):
    values, checks = SUITES["events"]
    values = values.assign(device=["radio" if i in (4, 30) else "tv" for i in range(ROWS)]).drop(index=[0, 1])
    check = next(c for c in checks if "not among phone" in c.fault)
    assert Site(tmp_path).offending_rows(values, check).tolist() == [4, 30]


def test_unknown_entities_are_normal_where_all_their_fields_may_be_missing():
    nullable = tuple(dataclasses.replace(f, nullable=True) if f.name == "age" else f for f in SCHEMA.fields)
    lenient = dataclasses.replace(SCHEMA, fields=nullable)
    assert any("without a row" in check.fault for check in events_values(SCHEMA, ["user"]))
    assert not any("without a row" in check.fault for check in events_values(SCHEMA, []))
    assert not any("without a row" in check.fault for check in events_values(lenient, ["user"]))


STRUCTURES = {
    "events": (events_structure(SCHEMA), {"row_id": "int64", "label": "uint8", "event_timestamp": "time in UTC"}),
    "users": (entity_structure(SCHEMA, "user"), {}),
    "frame": (
        frame_structure(SCHEMA),
        {"row_id": "int64", "label": "uint8", "split": "text", "history": "list of text"},
    ),
}
FIELDS = {"numeric": "double", "categorical": "text", "sequence": "list of text"}


def types_of(table):
    _, types = STRUCTURES[table]
    types = dict(types)
    for f in SCHEMA.inputs:
        if table == "frame" or f.owner == ("user" if table == "users" else "context") or f.name in ("uid", "iid"):
            types[f.name] = FIELDS[f.type]
    if table == "users":
        types = {name: types[name] for name in ("uid", "age", "city")}
    elif table == "events":
        types["time"] = "text"
    else:
        types |= dict.fromkeys(["event_timestamp", "user_as_of", "item_as_of"], "time in UTC")
    return types


@pytest.mark.parametrize("table", STRUCTURES)
def test_structure_demands_just_the_schemas_columns_and_types(run, table):
    types, checks = types_of(table), STRUCTURES[table][0]

    def judged(types):
        return failures(run(pd.DataFrame({name: [type_] for name, type_ in types.items()}), checks))

    assert judged(types) == []
    (leak,) = judged(types | {"dwell": "double"})
    assert "unexpected dwell" in leak.sentence
    wrong = judged(dict.fromkeys(types, "int8"))
    assert [o.sentence.split("'")[1] for o in wrong] == [o.check.column for o in wrong]
    assert {o.check.column for o in wrong} == set(types)
    assert all("is not of type" in o.sentence and o.sentence.endswith("(found int8)") for o in wrong)
    missing = [name for name in types if name not in ("uid", "row_id")]
    sentences = [o.sentence for o in judged({name: types[name] for name in types if name not in missing})]
    assert set(sentences) >= {f"column '{name}' is missing" for name in missing}
    assert sentences[0].endswith("is missing")


def test_a_history_without_statistics_has_its_as_of_column(run):
    schema = dataclasses.replace(SCHEMA, statistics=False)
    types = types_of("frame")
    derived = ("item_as_of", *(f.name for f in SCHEMA.statistics_fields))
    kept = pd.DataFrame({name: [type_] for name, type_ in types.items() if name not in derived})
    assert failures(run(kept, frame_structure(schema))) == []


def test_tables_are_loaded_as_the_suite_reads_them(tmp_path):
    table = pa.table(
        {
            "uid": ["u0", None, "u9"],
            "tags": pa.array([["a", "c", "d"], None, []], pa.list_(pa.string())),
            "price": [1.5, None, 2.0],
            "label": pa.array([1, 0, 1], pa.uint8()),
            "time": pa.array([0, 1, 2], pa.timestamp("us", tz="UTC")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    fields = [SCHEMA.field(name) for name in ("uid", "tags", "price")]
    values = load_values(tmp_path / "t.parquet", fields, ["label"])
    assert list(values.columns) == ["uid", "tags.length", "tags.foreign", "price", "label"]
    assert values["tags.length"].fillna(-1).tolist() == [3, -1, 0]
    assert values["tags.foreign"].tolist() == [2, 0, 0]
    assert values["price"].isna().tolist() == [False, True, False]
    assert known_entities(values["uid"], pd.Series(["u0"])).tolist() == [True, pd.NA, False]
    types = column_types(tmp_path / "t.parquet").iloc[0].to_dict()
    assert types == {
        "uid": "text",
        "tags": "list of text",
        "price": "double",
        "label": "uint8",
        "time": "time in UTC",
    }
