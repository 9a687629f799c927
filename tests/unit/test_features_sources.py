import dataclasses

import pandas as pd
import pytest

from narrowcast.components.data.schema import Field, History, Label, Schema, Source, Timestamp
from narrowcast.components.features.sources import connect, write_sources
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH

SOURCE = Source(path="events.csv", format="csv")
SCHEMA = Schema(
    name="small",
    sources={"events": SOURCE, "histories": SOURCE},
    label=Label(column="click"),
    timestamp=Timestamp(column="time"),
    user="u",
    item="i",
    fields=(
        Field(name="u", type="categorical", owner="user"),
        Field(name="i", type="categorical", owner="item"),
    ),
    history=History(max_length=3, initial_column="seen"),
)
# row id, second, user, item, label; the user's two events of second 2 are one moment
EVENTS = [(0, 1, "a", "x", 1), (1, 2, "a", "y", 0), (2, 2, "a", "z", 1), (3, 3, None, "x", 1), (4, 4, "a", "y", 1)]


def seconds(*values):
    return pd.to_datetime(values, unit="s", utc=True).astype("datetime64[us, UTC]")


@pytest.fixture
def dataset(tmp_path):
    frame = pd.DataFrame(EVENTS, columns=["row_id", "event_timestamp", "u", "i", "label"])
    frame["event_timestamp"] = seconds(*frame["event_timestamp"])
    frame["label"] = frame["label"].astype("uint8")
    frame.to_parquet(tmp_path / "events.parquet")
    initial = pd.DataFrame({"u": ["a", "b"], "history": [["k", "l"], ["m", "n", "o", "p"]]})
    initial.to_parquet(tmp_path / "histories.parquet")
    return tmp_path


def sources(schema, dataset, tmp_path):
    with connect(dataset) as connection:
        write_sources(connection, schema, tmp_path)
    return {path.stem: pd.read_parquet(path) for path in tmp_path.glob("*_*.parquet")}


def test_statistics_are_the_state_after_all_events_of_a_moment(dataset, tmp_path):
    user = sources(SCHEMA, dataset, tmp_path)["user_statistics"]
    assert user["u"].tolist() == ["a"] * 3  # the event without a user is nobody's past
    assert user["event_timestamp"].tolist() == user["user_as_of"].tolist() == seconds(1, 2, 4).tolist()
    assert user["user_events"].tolist() == [1, 3, 4]
    assert user["user_click_rate"].tolist() == [6 / 11, 7 / 13, 8 / 14]
    item = sources(SCHEMA, dataset, tmp_path)["item_statistics"].query("i == 'x'")
    assert item["item_events"].tolist() == [1, 2]  # but it is the item's


def test_history_starts_from_the_initial_items_and_keeps_the_last_clicked(dataset, tmp_path):
    history = sources(SCHEMA, dataset, tmp_path)["user_history"]
    states = {
        (u, t): list(items) for u, t, items in history[["u", "event_timestamp", "history"]].itertuples(index=False)
    }
    epoch = pd.Timestamp(EPOCH)
    one, two, four = seconds(1, 2, 4)
    assert states == {
        ("a", epoch): ["k", "l"],
        ("a", one): ["k", "l", "x"],
        ("a", two): ["l", "x", "z"],
        ("a", four): ["x", "z", "y"],
        ("b", epoch): ["n", "o", "p"],
    }


def test_history_of_everything_shown_keeps_row_order_within_a_moment(dataset, tmp_path):
    schema = dataclasses.replace(SCHEMA, sources={"events": SOURCE}, history=History(max_length=3, positive_only=False))
    history = sources(schema, dataset, tmp_path)["user_history"]
    assert [list(items) for items in history["history"]] == [["x"], ["x", "y", "z"], ["y", "z", "y"]]


def test_an_event_without_a_time_is_refused(dataset, tmp_path):
    events = pd.read_parquet(dataset / "events.parquet")
    events.loc[1, "event_timestamp"] = pd.NaT
    events.to_parquet(dataset / "events.parquet")
    with pytest.raises(NarrowcastError, match="1 events have no timestamp"):
        sources(SCHEMA, dataset, tmp_path)


def test_missing_tables_are_named(dataset, tmp_path):
    (dataset / "histories.parquet").unlink()
    with pytest.raises(NarrowcastError, match=r"no histories\.parquet"):
        sources(SCHEMA, dataset, tmp_path)
    fields = (*SCHEMA.fields, Field(name="age", type="numeric", owner="user"))
    with pytest.raises(NarrowcastError, match=r"no users\.parquet"):
        sources(dataclasses.replace(SCHEMA, fields=fields), dataset, tmp_path)
