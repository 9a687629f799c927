"""The feature store's online values in a real Redis."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.features.redis_url import PASSWORD
from narrowcast.components.features.store import fill, open_store
from narrowcast.errors import NarrowcastError


@pytest.fixture
def build(tiny_dataset, tiny_schema, tmp_path):
    """Builds a feature store in a Redis, of the tiny data set or another."""

    def built(redis, name: str, dataset: Path = tiny_dataset) -> Path:
        build_features(dataset, tiny_schema, 0, tmp_path / f"{name}_frame", tmp_path / name, redis.url)
        return tmp_path / name

    return built


def everything(store: Path, schema, users, items) -> list[dict[str, list]]:
    online = OnlineFeatures.load(store)
    return [online.lookup(user, items) for user in users]


def test_redis_gives_what_sqlite_gives_to_the_bit(start_redis, build, tiny_run, tiny_schema):
    store = build(start_redis(), "store")
    assert not (store / "online.db").exists()
    users, items = [*map(str, range(62)), ""], [*map(str, range(42)), ""]
    assert everything(store, tiny_schema, users, items) == everything(tiny_run.feature_store, tiny_schema, users, items)
    packed = PackedModel.load(tiny_run.packed_model)
    context = {"device": ["tv"], "price": [None]}
    scores = [
        packed.score(OnlineFeatures.load(folder).lookup("5", items) | context)
        for folder in (store, tiny_run.feature_store)
    ]
    np.testing.assert_array_equal(*scores)


def test_two_versions_in_one_redis_do_not_meet(start_redis, build, tiny_dataset, tiny_schema, tmp_path):
    redis = start_redis()
    first = build(redis, "first")
    users, items = [*map(str, range(60))], [*map(str, range(40))]
    before = everything(first, tiny_schema, users, items)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_dataset, changed)
    events = pd.read_parquet(changed / "events.parquet")
    events["label"] = 1 - events["label"]
    events.to_parquet(changed / "events.parquet")
    second = build(redis, "second", changed)
    assert everything(second, tiny_schema, users, items) != before
    assert everything(first, tiny_schema, users, items) == before


def test_a_redis_that_lost_the_entities_is_told_and_filled_again(start_redis, build, tiny_schema):
    redis = start_redis()
    store = build(redis, "store")
    before = OnlineFeatures.load(store).lookup("3", ["1", "2"])
    assert fill(store) is False
    redis.stop()
    redis.start()  # it keeps nothing
    with pytest.raises(NarrowcastError, match=r"does not hold 'user_attributes'.*feast -c .* materialize"):
        OnlineFeatures.load(store)
    assert fill(store) is True
    assert fill(store) is False
    assert OnlineFeatures.load(store).lookup("3", ["1", "2"]) == before


@pytest.mark.slow
def test_the_feast_command_fills_it_too(start_redis, build):
    redis = start_redis()
    store = build(redis, "store")
    before = OnlineFeatures.load(store).lookup("3", ["1", "2"])
    redis.stop()
    redis.start()
    with pytest.raises(NarrowcastError) as told:
        OnlineFeatures.load(store)
    command = str(told.value).split("`")[1].split()
    command[0] = str(Path(sys.executable).with_name("feast"))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert OnlineFeatures.load(store).lookup("3", ["1", "2"]) == before


def test_the_password_comes_from_the_environment_and_is_never_written(start_redis, build, monkeypatch, tmp_path):
    secret = "12.5e3"  # a value that a YAML or JSON reader would take for a number
    redis = start_redis("--requirepass", secret)
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(NarrowcastError, match=rf"refuses us.*{PASSWORD}"):
        build(redis, "store")
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(NarrowcastError, match=rf"refuses us.*{PASSWORD}"):
        build(redis, "store")
    monkeypatch.setenv(PASSWORD, secret)
    store = build(redis, "store")
    assert OnlineFeatures.load(store).lookup("3", ["1"])["user_events"][0] > 0
    for file in store.iterdir():
        if file.suffix != ".parquet":
            assert secret.encode() not in file.read_bytes(), file
    monkeypatch.delenv(PASSWORD)
    with pytest.raises(NarrowcastError, match=rf"refuses us.*{PASSWORD}"):
        OnlineFeatures.load(store)


def test_a_redis_that_is_gone_stops_the_step_but_not_the_opening(start_redis, build, caplog):
    redis = start_redis()
    store = build(redis, "store")
    redis.stop()
    with pytest.raises(NarrowcastError, match=r"does not answer .*online_store"):
        build(redis, "other")
    with pytest.raises(NarrowcastError, match="does not answer"):
        fill(store)
    with caplog.at_level(logging.WARNING):
        online = OnlineFeatures.load(store)
    assert "does not answer yet" in caplog.text
    redis.start()
    fill(store)
    assert online.lookup("3", ["1"])["user_events"][0] > 0


def test_it_is_an_ordinary_feast_repository(start_redis, build, tiny_schema):
    store = build(start_redis(), "store")
    users = ["3", "nobody"]
    names = ["age", "city", "user_events", "user_click_rate", "history"]
    views = ["user_attributes", "user_attributes", "user_statistics", "user_statistics", "user_history"]
    references = [f"{view}:{name}" for view, name in zip(views, names, strict=True)]
    theirs = open_store(store).get_online_features(references, {"user_id": users}).to_dict()
    online = OnlineFeatures.load(store)
    assert online.names["user"] == tuple(names)
    (ours, stranger) = online.read("user", users)
    assert ours == tuple(theirs[name][0] for name in names)
    assert stranger == online.defaults("user") == (None, None, 0.0, 0.5, [])
    assert [theirs[name][1] for name in names] == [None] * len(names)
