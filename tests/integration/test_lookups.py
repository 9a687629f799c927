"""Lookups over stores that answer, hang, die and come back; nothing stands for the stores here."""

import asyncio
import contextlib
import shutil
import sqlite3
import threading
import time

import pandas as pd
import pytest

from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.features.store import fill, open_store
from narrowcast.components.serve.lookups import ITEMS_A_READ, Lookups

ITEMS = [str(i) for i in range(12)]
PATIENT_MS = 20_000.0
"""A deadline that no working store misses, however busy the machine."""


@pytest.fixture
def store(tiny_run, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(tiny_run.feature_store, folder)
    return folder


@pytest.fixture
def redis_store(start_redis, tiny_dataset, tiny_schema, tmp_path):
    redis = start_redis()
    build_features(tiny_dataset, tiny_schema, 0, tmp_path / "frame", tmp_path / "store", redis.url)
    return tmp_path / "store", redis


@contextlib.contextmanager
def opened(folder, deadline_ms=PATIENT_MS, **options):
    lookups = Lookups(OnlineFeatures.load(folder), deadline_ms, **options)
    try:
        yield lookups
    finally:
        lookups.close()


@contextlib.contextmanager
def locked(folder):
    """Readers of the SQLite store hang for five seconds, then fail."""
    with contextlib.closing(sqlite3.connect(folder / "online.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def find(lookups, user="3", items=ITEMS):
    return asyncio.run(lookups.find(user, items))


def expected(lookups, user="3", items=ITEMS):
    """What `OnlineFeatures.lookup` gives, the user's values once."""
    found, once = lookups.features.lookup(user, items), lookups.features.lookup(user, [""])
    field = lookups.features.schema.field
    return {name: once[name] if field(name).owner == "user" else values for name, values in found.items()}


def defaults(lookups, user="3", items=ITEMS):
    features = lookups.features
    columns = {"user_id": [user], "item_id": list(items)}
    columns |= {name: [value] for name, value in zip(features.names["user"], features.defaults("user"), strict=True)}
    columns |= {
        name: [value] * len(items)
        for name, value in zip(features.names["item"], features.defaults("item"), strict=True)
    }
    return columns


def read_threads() -> int:
    return sum(thread.name.startswith("lookup") for thread in threading.enumerate())


async def until_answered(lookups, seconds=30.0):
    deadline = time.monotonic() + seconds
    while (looked := await lookups.find("3", ITEMS)).fallbacks:
        assert time.monotonic() < deadline, looked.fallbacks
        await asyncio.sleep(0.05)
    return looked


@pytest.mark.parametrize("items", [ITEMS, [], ["7"], ["1", "2", "1", "nothing", ""]])
def test_one_value_for_the_user_and_one_an_item(store, items):
    with opened(store) as lookups:
        for user in ("3", "nobody", ""):
            for _ in range(2):  # read, then from memory
                looked = find(lookups, user, items)
                assert looked.fallbacks == ()
                assert looked.columns == expected(lookups, user, items)


def test_more_items_than_a_read_takes(store):
    items = [str(i) for i in range(2 * ITEMS_A_READ + 5)]
    with opened(store) as lookups:
        looked = find(lookups, items=items)
        assert looked.fallbacks == ()
        assert looked.columns == expected(lookups, items=items)


def test_a_store_that_hangs_costs_the_deadline_and_no_threads(store):
    with opened(store) as patient:
        known = find(patient).columns
    with opened(store, 100.0, num_threads=2, max_failures=3, retry_after_s=0.3) as lookups:

        async def main():
            longest_gap = 0.0

            async def tick():
                nonlocal longest_gap
                while True:
                    started = time.monotonic()
                    await asyncio.sleep(0.01)
                    longest_gap = max(longest_gap, time.monotonic() - started)

            ticking = asyncio.create_task(tick())
            with locked(store):
                for _ in range(3):
                    started = time.monotonic()
                    many = await asyncio.gather(*(lookups.find("3", ITEMS) for _ in range(100)))
                    assert time.monotonic() - started < 4  # the store itself takes 5 to fail
                    assert all(looked.fallbacks == ("user", "item") for looked in many)
                    assert all(looked.columns == defaults(lookups) for looked in many)
                assert read_threads() == 2
                started = time.monotonic()
                for _ in range(50):
                    assert (await lookups.find("3", ITEMS)).fallbacks
                assert time.monotonic() - started < 50 * 0.1 / 2  # it is not even asked
            assert longest_gap < 3
            ticking.cancel()
            return await until_answered(lookups)

        assert asyncio.run(main()).columns == known


def test_items_in_memory_outlive_the_store(store):
    with opened(store) as lookups:
        known = find(lookups)
        lookups.deadline_ms = 50.0
        with locked(store):
            looked = find(lookups)
            assert looked.fallbacks == ("user",)
            assert {n: v for n, v in looked.columns.items() if n.startswith(("item", "kind", "tags"))} == {
                n: v for n, v in known.columns.items() if n.startswith(("item", "kind", "tags"))
            }
            assert looked.columns["history"] == [[]]
            assert find(lookups, items=[*ITEMS, "20"]).fallbacks == ("user", "item")


def test_what_comes_too_late_is_kept_for_the_next(store):
    with opened(store, 50.0, num_threads=4) as lookups:
        with locked(store):
            assert find(lookups).fallbacks == ("user", "item")
        deadline = time.monotonic() + 20
        while lookups._items.get(ITEMS)[1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_preloaded_items_need_no_store(store):
    with opened(store) as lookups:
        known = find(lookups)
    with opened(store) as lookups:
        lookups.preload([str(i) for i in range(40)])
        lookups.deadline_ms = 50.0
        with locked(store):
            looked = find(lookups)
        assert looked.fallbacks == ("user",)
        assert looked.columns["kind"] == known.columns["kind"]


def test_closing_ends_the_threads(store):
    with opened(store) as lookups:
        find(lookups)
        assert read_threads() > 0
    deadline = time.monotonic() + 10
    while read_threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("fault", ["hangs", "dies"])
def test_a_redis_that_hangs_or_dies_and_comes_back(redis_store, fault):
    folder, redis = redis_store
    with opened(folder, num_threads=2, max_failures=3, retry_after_s=0.3) as lookups:

        async def main():
            known = await lookups.find("3", ITEMS)
            assert known.fallbacks == ()
            assert known.columns == expected(lookups)
            lookups.deadline_ms = 200.0
            redis.hang() if fault == "hangs" else redis.stop()
            try:
                for _ in range(20):
                    started = time.monotonic()
                    looked = await lookups.find("3", ITEMS)
                    assert time.monotonic() - started < 2
                    assert looked.fallbacks == ("user",)
                    assert looked.columns["history"] == [[]]
                    assert looked.columns["kind"] == known.columns["kind"]
                assert read_threads() == 2
            finally:
                redis.go_on() if fault == "hangs" else redis.start()
            if fault == "dies":
                fill(folder)
            lookups.deadline_ms = PATIENT_MS
            assert (await until_answered(lookups)).columns == known.columns

        asyncio.run(main())


def test_items_of_a_redis_are_read_again_after_a_while(redis_store, tiny_schema):
    folder, _ = redis_store
    with opened(folder, item_age_s=0.3) as lookups, opened(folder) as patient:
        before = find(lookups).columns["item_events"]
        find(patient)
        time_ = pd.Timestamp("2100-01-01", tz="UTC")
        newer = {"event_timestamp": time_, "item_events": 1e6, "item_click_rate": 0.25, "item_as_of": time_}
        open_store(folder).write_to_online_store("item_statistics", pd.DataFrame({"item_id": ITEMS, **newer}))
        time.sleep(0.4)
        assert find(lookups).columns["item_events"] == [1e6] * len(ITEMS)
        assert find(patient).columns["item_events"] == before
