import dataclasses
import re
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from narrowcast.components.data.schema import Schema
from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.features.store import open_store
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest


def build(dataset: Path, schema: Schema, target: Path, seed: int = 0) -> tuple[pd.DataFrame, Path]:
    build_features(dataset, schema, seed, target / "frame", target / "store")
    return pd.read_parquet(target / "frame" / "frame.parquet"), target / "store"


def same(left: object, right: object) -> bool:
    """Equal values, lists and missing ones included."""
    if isinstance(left, list | np.ndarray) or isinstance(right, list | np.ndarray):
        return left is not None and right is not None and list(left) == list(right)
    return (pd.isna(left) and pd.isna(right)) or left == right


def write_events(folder: Path, **columns) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    frame.insert(0, "row_id", np.arange(len(frame)))
    frame["label"] = frame["label"].astype("uint8")
    if "event_timestamp" in frame:
        times = pd.to_datetime(frame["event_timestamp"], unit="s", utc=True)
        frame["event_timestamp"] = times.astype("datetime64[us, UTC]")
    frame.to_parquet(folder / "events.parquet")
    return folder


@pytest.fixture(scope="module")
def built(tiny_dataset, tiny_schema, tmp_path_factory):
    target = tmp_path_factory.mktemp("features")
    return *build(tiny_dataset, tiny_schema, target), target


def test_the_frame_is_the_reference_to_the_last_bit(built, tiny_frame, tiny_schema):
    frame, _, target = built
    expected = pd.read_parquet(tiny_frame / "frame.parquet")
    assert list(frame.columns) == [
        *("row_id", "event_timestamp", "label", "split"),
        *tiny_schema.input_names,
        *("user_as_of", "item_as_of"),
    ]
    assert len(frame) == len(expected)
    assert (frame["history"].str.len() == 0).any()
    assert (frame["history"].str.len() == tiny_schema.history.max_length).any()
    for name in frame.columns:
        differ = [i for i, pair in enumerate(zip(frame[name], expected[name], strict=True)) if not same(*pair)]
        assert not differ, f"{name} differs in {len(differ)} rows, the first {differ[0]}"
    record = StepRecord.load(target / "frame")
    assert record.rows_in == record.rows_out == len(expected)
    assert {name: d["rows"] for name, d in record.details["splits"].items()} == dict(expected["split"].value_counts())


def test_no_value_is_from_at_or_after_its_row(built):
    frame, _, _ = built
    for owner in ("user", "item"):
        past = frame.dropna(subset=f"{owner}_as_of")
        assert len(past) > len(frame) / 2
        assert (past[f"{owner}_as_of"] < past["event_timestamp"]).all()
        assert frame.loc[frame[f"{owner}_as_of"].isna(), f"{owner}_events"].eq(0).all()


def test_the_column_types_are_the_contract_s(built):
    _, _, target = built
    types = {field.name: str(field.type) for field in pq.read_schema(target / "frame" / "frame.parquet")}
    assert types["row_id"] == "int64"
    assert types["label"] == "uint8"
    assert types["event_timestamp"] == types["user_as_of"] == "timestamp[us, tz=UTC]"
    assert types["split"] == types["user_id"] == types["kind"] == "string"
    assert types["age"] == types["user_events"] == types["user_click_rate"] == "double"
    assert types["tags"].startswith("list<")
    assert types["history"].startswith("list<")


def test_two_runs_give_the_same_frame(built, tiny_dataset, tiny_schema, tmp_path):
    _, _, target = built
    build(tiny_dataset, tiny_schema, tmp_path)
    assert digest(tmp_path / "frame") == digest(target / "frame")


def test_rows_of_one_user_and_time_are_all_kept(tiny_schema, tmp_path):
    rows = 30
    dataset = write_events(
        tmp_path / "data",
        event_timestamp=np.repeat(np.arange(rows // 3), 3),
        label=np.arange(rows) % 2,
        user_id=["1"] * rows,
        item_id=["7"] * rows,
        device=["tv"] * rows,
        price=np.ones(rows),
    )
    pd.DataFrame({"user_id": ["1"], "age": [30.0], "city": ["x"]}).to_parquet(dataset / "users.parquet")
    items = pd.DataFrame({"item_id": ["7"], "kind": ["film"], "tags": [["a"]]})
    items.to_parquet(dataset / "items.parquet")
    frame, _ = build(dataset, tiny_schema, tmp_path)
    assert frame["row_id"].tolist() == list(range(rows))
    assert frame["user_events"].tolist() == [float(i // 3 * 3) for i in range(rows)]


def test_an_entity_that_no_table_knows_and_a_missing_key_give_nulls_and_defaults(tiny_dataset, tiny_schema, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(tiny_dataset, dataset)
    users = pd.read_parquet(dataset / "users.parquet")
    users[users["user_id"] != "3"].to_parquet(dataset / "users.parquet")
    events = pd.read_parquet(dataset / "events.parquet")
    events.loc[events.index[-5:], "user_id"] = None
    events.to_parquet(dataset / "events.parquet")
    frame, _ = build(dataset, tiny_schema, tmp_path)
    stranger, nobody = frame[frame["user_id"] == "3"], frame[frame["user_id"].isna()]
    assert stranger["age"].isna().all()
    assert stranger["user_events"].max() > 0
    assert len(nobody) == 5
    assert nobody["age"].isna().all()
    assert nobody["user_events"].eq(0).all()
    assert nobody["user_click_rate"].eq(0.5).all()
    assert nobody["history"].str.len().eq(0).all()
    assert nobody["item_events"].max() > 0


def test_online_and_offline_agree_also_after_the_folder_has_moved(
    built, tiny_dataset, tiny_schema, tmp_path, monkeypatch
):
    frame, store, _ = built
    moved = tmp_path / "elsewhere" / "store"
    shutil.copytree(store, moved)
    hidden = store.rename(store.with_name("hidden"))
    monkeypatch.chdir(tmp_path)
    try:
        users, items = sorted(frame["user_id"].unique())[:20], sorted(frame["item_id"].unique())
        now = frame["event_timestamp"].max() + timedelta(days=3650)  # values never expire, offline or online
        pairs = pd.MultiIndex.from_product([users, items], names=["user_id", "item_id"]).to_frame(index=False)
        pairs["event_timestamp"] = now
        offline = open_store(moved)
        service = offline.get_feature_service(tiny_schema.feature_service)
        expected = offline.get_historical_features(pairs, service).to_df().set_index(["user_id", "item_id"])
        online = OnlineFeatures.load(moved)
        for user in users:
            found = online.lookup(user, items)
            assert set(found) == {f.name for f in tiny_schema.inputs if f.owner != "context"}
            for name in set(found) - {"user_id", "item_id"}:
                values = expected.loc[[(user, item) for item in items], name]
                assert all(same(*pair) for pair in zip(found[name], values, strict=True)), (user, name)
        assert online.lookup(users[0], items) == online.lookup(users[0], items)
    finally:
        hidden.rename(store)
    assert str(store.parent).encode() not in (moved / "registry.db").read_bytes()


def test_unknown_users_and_items_are_answered_with_defaults(built):
    online = OnlineFeatures.load(built[1])
    found = online.lookup("nobody", ["0", "nothing", "0"])
    assert found["user_id"] == ["nobody"] * 3
    assert found["item_id"] == ["0", "nothing", "0"]
    assert found["age"] == found["city"] == [None] * 3
    assert found["user_events"] == [0.0] * 3
    assert found["user_click_rate"] == [0.5] * 3
    assert found["history"] == [[]] * 3
    assert found["kind"][0] == found["kind"][2] is not None
    assert (found["kind"][1], found["tags"][1], found["item_events"][1], found["item_click_rate"][1]) == (
        None,
        None,
        0,
        0.5,
    )
    assert all(values == [] for values in online.lookup("0", []).values())


def test_every_entity_reaches_the_online_store_beyond_one_batch(tmp_path):
    users = 25_000
    schema = Schema.from_text("""
name: many
sources: {events: {path: events.csv, format: csv}}
user: u
timestamp: {column: t}
label: {column: y}
fields: [{name: u, type: categorical, owner: user}]
""")
    names = [f"u{i}" for i in range(users)]
    dataset = write_events(
        tmp_path / "data", event_timestamp=np.arange(2 * users), label=np.arange(2 * users) % 2, u=names * 2
    )
    frame, store = build(dataset, schema, tmp_path)
    assert frame["user_events"].tolist() == [0.0] * users + [1.0] * users
    with sqlite3.connect(store / "online.db") as connection:
        ((table,),) = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        (entities, values) = connection.execute(f"SELECT count(DISTINCT entity_key), count(*) FROM {table}").fetchone()
    assert re.fullmatch("many_[0-9a-f]{12}_user_statistics", table)
    assert (entities, values) == (users, 3 * users)
    assert OnlineFeatures.load(store).lookup(names[-1], [])["user_events"] == []


def test_a_schema_without_entities_or_time(tmp_path):
    text = """
name: "null"  # a name that YAML would read as something else
sources: {events: {path: events.csv, format: csv}}
label: {column: click}
fields: [{name: site, type: categorical}, {name: price, type: numeric}]
"""
    dataset = write_events(tmp_path / "data", label=np.arange(200) % 2, site=["s"] * 200, price=np.arange(200.0))
    frame, store = build(dataset, Schema.from_text(text), tmp_path, seed=3)
    assert list(frame.columns) == ["row_id", "label", "split", "site", "price"]
    assert frame["row_id"].tolist() == list(range(200))
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert open_store(store).list_feature_views() == []
    assert OnlineFeatures.load(store).lookup("u", ["i"]) == {}


def test_attributes_are_joined_where_there_is_no_time(tmp_path):
    text = """
name: timeless
sources: {events: {path: events.csv, format: csv}}
user: u
label: {column: click}
fields: [{name: u, type: categorical, owner: user}, {name: "order", type: numeric, owner: user}]
"""
    dataset = write_events(tmp_path / "data", label=np.arange(200) % 2, u=["a", "b", "c", "d"] * 50)
    pd.DataFrame({"u": ["a", "b", "c"], "order": [1.0, None, 3.0]}).to_parquet(dataset / "users.parquet")
    frame, store = build(dataset, Schema.from_text(text), tmp_path)
    assert frame["order"].fillna(-1).tolist() == [1.0, -1.0, 3.0, -1.0] * 50
    assert OnlineFeatures.load(store).lookup("c", ["x", "y"]) == {"u": ["c", "c"], "order": [3.0, 3.0]}


def test_repeated_row_ids_are_refused_and_nothing_is_half_written(tiny_dataset, tiny_schema, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(tiny_dataset, dataset)
    events = pd.read_parquet(dataset / "events.parquet")
    events.loc[events.index[1], "row_id"] = events["row_id"].iloc[0]
    events.to_parquet(dataset / "events.parquet")
    with pytest.raises(NarrowcastError, match="row ids"):
        build(dataset, tiny_schema, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_a_store_or_events_is_named(tmp_path, tiny_schema):
    with pytest.raises(NarrowcastError, match=r"feature_store\.yaml is missing"):
        OnlineFeatures.load(tmp_path)
    with pytest.raises(NarrowcastError, match=r"no events\.parquet"):
        build_features(tmp_path, tiny_schema, 0, tmp_path / "frame", tmp_path / "store")


def test_the_step_turns_a_schema_with_statistics_off_into_history_only(tiny_dataset, tiny_schema, tmp_path):
    schema = dataclasses.replace(tiny_schema, statistics=False)
    frame, _ = build(tiny_dataset, schema, tmp_path)
    assert [name for name in frame.columns if name.endswith(("_events", "_rate", "_as_of"))] == ["user_as_of"]
    past = frame[frame["history"].str.len() > 0]
    assert (past["user_as_of"] < past["event_timestamp"]).all()
