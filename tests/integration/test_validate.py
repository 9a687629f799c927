"""The validation steps on whole tables: what stops the run, what is set aside, and what is written either way."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema
from narrowcast.components.validate.validate import validate_dataset, validate_frame
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json

KUAIRAND = Path(__file__).parents[2].parent / "shared" / "data" / "kuairand_pure"


def with_checks(schema, **changes):
    return dataclasses.replace(schema, checks=dataclasses.replace(schema.checks, **changes))


@pytest.fixture(scope="session")
def frame(tiny_frame):
    return tiny_frame


@pytest.fixture
def spoil(tiny_dataset, frame, tmp_path):
    """A copy of the tiny dataset or frame with one table changed by a function."""

    def run(table, change):
        folder = tmp_path / "spoiled"
        if not folder.exists():
            shutil.copytree(frame if table == "frame" else tiny_dataset, folder)
        path = folder / f"{table}.parquet"
        change(pd.read_parquet(path)).to_parquet(path, index=False)
        return folder

    return run


def set_value(column, row, value):
    def change(table):
        table = table.astype({column: object}) if isinstance(value, list) or value is None else table
        table.at[row, column] = value
        return table

    return change


def stopped(validate, source, schema, tmp_path):
    """The sentence of a run that must stop, having written Data Docs and nothing else."""
    with pytest.raises(NarrowcastError) as caught:
        validate(source, schema, tmp_path / "valid", tmp_path / "docs")
    assert not (tmp_path / "valid").exists()
    assert (tmp_path / "docs" / "index.html").is_file()
    assert not list(tmp_path.glob(".*"))
    sentence, _, page = str(caught.value).rpartition("; see ")
    assert Path(page) == tmp_path / "docs" / "index.html"
    return sentence


def test_sound_tables_pass_unchanged(tiny_dataset, tiny_schema, tmp_path):
    for name in ("one", "two"):
        validate_dataset(tiny_dataset, tiny_schema, tmp_path / name, tmp_path / f"{name}_docs")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    tables = ["events.parquet", "items.parquet", "users.parquet"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted([*tables, "step.json", "validation.json"])
    assert all(digest(tmp_path / "one" / table) == digest(tiny_dataset / table) for table in tables)
    checks = read_json(tmp_path / "one" / "validation.json")
    assert all(check["passed"] for check in checks)
    assert {check["table"] for check in checks} == {"events", "users", "items"}
    record = StepRecord.load(tmp_path / "one")
    assert record.step == "validate_raw"
    assert record.rows_in == record.rows_out == len(pd.read_parquet(tiny_dataset / "events.parquet"))
    assert record.metrics["events_without_user"] == 0
    docs = (tmp_path / "one_docs" / "index.html").read_text()
    assert all(table in docs for table in ("events", "users", "items"))


def test_sound_frame_passes_with_its_drift(frame, tiny_schema, tmp_path):
    for name in ("one", "two"):
        validate_frame(frame, tiny_schema, tmp_path / name, tmp_path / f"{name}_docs")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    names = ["drift.json", "frame.parquet", "step.json", "validation.json"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == names
    drift = read_json(tmp_path / "one" / "drift.json")["fields"]
    assert [field["name"] for field in drift] == sorted(tiny_schema.input_names)
    assert StepRecord.load(tmp_path / "one").details["drift"] == drift


def test_stop_names_column_fault_count_and_example(spoil, tiny_schema, tmp_path):
    source = spoil("users", set_value("age", 4, 512.0))
    spoil("events", set_value("label", 9, 0))
    assert stopped(validate_dataset, source, tiny_schema, tmp_path) == (
        "validation of users failed: column 'age' has 1 of 60 values outside 0..120 (such as 512): mend the data, or "
        "widen `min` and `max` in the schema, or set checks.on_failure: quarantine"
    )


def test_stop_counts_the_other_faults_of_all_tables(spoil, tiny_schema, tmp_path):
    spoil("users", set_value("age", 4, -1.0))
    spoil("items", set_value("kind", 2, "opera"))
    source = spoil("events", lambda events: pd.concat([events, events.iloc[[0, 0]].assign(row_id=[9998, 9999])]))
    sentence = stopped(validate_dataset, source, tiny_schema, tmp_path)
    assert "column 'age' has 1 of 60" in sentence
    assert sentence.endswith("(2 more checks failed)")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.drop(columns="device"), "column 'device' is missing"),
        (
            lambda f: f.assign(watch_seconds=1.0),
            "columns are not just those that the schema names (found unexpected watch",
        ),
        (lambda f: f.assign(price=f["price"].astype(str)), "column 'price' is not of type double (found text)"),
        (
            lambda f: f.assign(label=np.uint8(1)),
            "'label' must be positive in a share of 0.1..0.9 of the rows (found 1)",
        ),
        (lambda f: f.iloc[::-1], "column 'event_timestamp' has "),
        (lambda f: f.assign(user_as_of=f["event_timestamp"]), "values not before the row's event_timestamp"),
    ],
)
def test_a_frame_at_fault_as_a_whole_stops_whatever_the_policy(spoil, tiny_schema, tmp_path, change, sentence):
    lenient = with_checks(tiny_schema, on_failure="quarantine", max_quarantined=1.0)
    assert sentence in stopped(validate_frame, spoil("frame", change), lenient, tmp_path)


def test_quarantine_sets_rows_aside_with_their_reasons(spoil, tiny_schema, tmp_path):
    def change(events):
        events["label"] = events["label"].astype("int64")
        events.loc[[3, 5], "label"] = 7
        events.loc[8, "price"] = -2.0
        again = events.iloc[[3, 10, 10, 20]].assign(row_id=[9001, 9002, 9003, 9004])
        again.loc[3, "label"] = 1
        return pd.concat([events, again], ignore_index=True)

    source = spoil("events", change)
    validate_dataset(source, with_checks(tiny_schema, on_failure="quarantine"), tmp_path / "valid", tmp_path / "docs")
    before, kept = (pd.read_parquet(folder / "events.parquet") for folder in (source, tmp_path / "valid"))
    refused = pd.read_parquet(tmp_path / "valid" / "quarantine.parquet").set_index("row_id")["reason"]
    repeat = "user_id, item_id, time: rows that repeat an earlier one"
    assert refused.to_dict() == {
        3: "label: values that are neither 0 nor 1",
        5: "label: values that are neither 0 nor 1",
        8: "price: values outside 0..3.40282e+38",
        9002: repeat,
        9003: repeat,
        9004: repeat,
    }
    assert sorted([*kept["row_id"], *refused.index]) == before["row_id"].tolist()
    assert 9001 in set(kept["row_id"])  # the row that it repeats was at fault itself
    assert kept["label"].dtype == np.uint8
    record = StepRecord.load(tmp_path / "valid")
    assert (record.rows_in, record.rows_out) == (len(before), len(kept))
    assert sorted(record.refused.values()) == [1, 2, 3]
    failed = [c for c in read_json(tmp_path / "valid" / "validation.json") if not c["passed"]]
    assert {(c["column"], c["unexpected"]) for c in failed} == {
        ("label", 2),
        ("price", 1),
        ("user_id, item_id, time", 4),
    }
    assert "events after quarantine" in (tmp_path / "docs" / "index.html").read_text()


def test_events_follow_a_user_into_quarantine(spoil, tiny_schema, tmp_path):
    source = spoil("users", set_value("age", 4, 512.0))
    lenient = with_checks(tiny_schema, on_failure="quarantine", max_quarantined=0.1)
    validate_dataset(source, lenient, tmp_path / "valid", tmp_path / "docs")
    users = pd.read_parquet(tmp_path / "valid" / "users.parquet")
    events = pd.read_parquet(tmp_path / "valid" / "events.parquet")
    refused = pd.read_parquet(tmp_path / "valid" / "quarantine.parquet")
    assert pd.read_parquet(tmp_path / "valid" / "quarantine_users.parquet")["user_id"].tolist() == ["4"]
    assert len(users) == 59
    assert set(refused["user_id"]) == {"4"}
    assert set(refused["reason"]) == {"user_id: values without a row in users"}
    assert "4" not in set(events["user_id"])
    assert StepRecord.load(tmp_path / "valid").metrics["events_without_user"] == len(refused)


def test_unknown_users_are_normal_where_their_fields_may_be_missing(spoil, tiny_schema, tmp_path):
    source = spoil("users", lambda users: users.drop(index=4))
    sentence = stopped(validate_dataset, source, tiny_schema, tmp_path)
    assert "values without a row in users: add the rows" in sentence, "no example: it would be that of a stand-in"
    nullable = tuple(dataclasses.replace(f, nullable=True) if f.owner == "user" else f for f in tiny_schema.fields)
    lenient = dataclasses.replace(tiny_schema, fields=nullable)
    validate_dataset(source, lenient, tmp_path / "valid", tmp_path / "docs")
    record = StepRecord.load(tmp_path / "valid")
    assert record.refused == {}
    assert record.metrics["events_without_user"] > 0


def test_quarantine_has_a_limit(spoil, tiny_schema, tmp_path):
    source = spoil("events", lambda events: events.assign(price=events["price"].where(events.index >= 100, -1.0)))
    sentence = stopped(validate_dataset, source, with_checks(tiny_schema, on_failure="quarantine"), tmp_path)
    assert "column 'price' has 100 of " in sentence
    assert "raise checks.max_quarantined from 0.01, for quarantine would take 100 of " in sentence


def test_quarantine_does_not_mend_a_label_rate(spoil, tiny_schema, tmp_path):
    source = spoil("events", lambda events: set_value("price", 0, -1.0)(events).assign(label=np.uint8(0)))
    sentence = stopped(validate_dataset, source, with_checks(tiny_schema, on_failure="quarantine"), tmp_path)
    assert "column 'label' must be positive in a share of 0.1..0.9 of the rows (found 0)" in sentence


def test_drift_past_its_limit_stops_and_leaves_its_figures_in_the_docs(frame, tiny_schema, tmp_path):
    strict = with_checks(tiny_schema, max_drift=0.5)
    sentence = stopped(validate_frame, frame, strict, tmp_path)
    assert "field 'item_click_rate' has a PSI of " in sentence, "the trailing counts have no limit"
    assert "over the limit 0.5" in sentence
    figures = json.loads((tmp_path / "docs" / "drift.json").read_text())["fields"]
    assert not all(field["passed"] for field in figures)


def test_a_truncated_table_is_one_sentence(tiny_dataset, tiny_schema, tmp_path):
    source = tmp_path / "broken"
    shutil.copytree(tiny_dataset, source)
    whole = (source / "items.parquet").read_bytes()
    (source / "items.parquet").write_bytes(whole[: len(whole) // 2])
    assert "items.parquet is not readable Parquet" in stopped(validate_dataset, source, tiny_schema, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not KUAIRAND.is_dir(), reason="KuaiRand-Pure is not on this machine")
def test_repeated_exposures_of_kuairand_are_accounted_for(tmp_path):
    schema = Schema.load("kuairand_pure")
    ingest(KUAIRAND, schema, tmp_path / "dataset")
    validate_dataset(tmp_path / "dataset", schema, tmp_path / "valid", tmp_path / "docs")
    log = pd.read_parquet(KUAIRAND / "log.parquet", columns=list(schema.checks.row_key or ()))
    record = StepRecord.load(tmp_path / "valid")
    assert list(record.refused.values()) == [int(log.duplicated().sum())]
    assert record.rows_out == len(log.drop_duplicates())
