"""What lookups are made of: a bounded pool of threads, a breaker, items in memory."""

import queue
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.components.serve.breaker import Breaker
from narrowcast.components.serve.kept_items import KeptItems
from narrowcast.components.serve.threads import Threads


@pytest.fixture
def pool():
    threads = Threads(2, 3, "test-pool")
    yield threads
    threads.close()


def of_pool() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("test-pool")]


def test_threads_answer_and_hand_errors_on(pool):
    assert [pool.submit(lambda i=i: i * i).result(10) for i in range(10)] == [i * i for i in range(10)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(10)
    assert pool.submit(lambda: "still there").result(10) == "still there"


def test_calls_that_hang_fill_the_pool_and_no_more(pool):
    hanging = threading.Event()
    running = []
    for _ in range(2):
        running.append(pool.submit(hanging.wait))
        while not running[-1].running():
            time.sleep(0.001)
    ran = []
    waiting = [pool.submit(lambda i=i: ran.append(i)) for i in range(3)]
    for _ in range(5):
        with pytest.raises(queue.Full):
            pool.submit(lambda: None)
    assert len(of_pool()) == 2
    assert waiting[1].cancel()
    hanging.set()
    waiting[2].result(10)
    assert sorted(ran) == [0, 2]


@pytest.mark.parametrize("max_waiting", [1, 3])
def test_closing_ends_the_threads_and_cancels_what_waits(max_waiting):
    pool = Threads(2, max_waiting, "test-pool")
    hanging = threading.Event()
    running = []
    for _ in range(2):
        running.append(pool.submit(hanging.wait))
        while not running[-1].running():
            time.sleep(0.001)
    waiting = [pool.submit(lambda: None) for _ in range(max_waiting)]
    pool.close()
    assert all(future.cancelled() for future in waiting)
    hanging.set()
    assert running[0].result(10)
    deadline = time.monotonic() + 10
    while of_pool():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def clock(monkeypatch):
    """`time.monotonic` stands still; the list's one number is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_through_in_a_while(clock):
    breaker = Breaker(3, 2.0)
    for answered in (False, False, True, False, False):
        assert breaker.allows()
        breaker.report(answered)
    assert not breaker.is_open
    breaker.report(False)
    assert breaker.is_open
    assert not breaker.allows()
    clock[0] += 2.1
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    breaker.report(False)
    assert not breaker.allows()
    clock[0] += 2.1
    assert breaker.allows()
    breaker.report(True)
    assert not breaker.is_open
    assert breaker.allows()


def test_an_open_breaker_asks_again_though_a_report_never_came(clock):
    breaker = Breaker(1, 2.0)
    breaker.report(False)
    for _ in range(3):
        clock[0] += 2.1
        assert breaker.allows()
        assert not breaker.allows()


ids = st.lists(st.text("abcd", max_size=2), max_size=12)


@given(limit=st.integers(1, 8), steps=st.lists(ids, max_size=12))
def test_kept_items_are_the_latest_read_within_the_bound(limit, steps):
    kept = KeptItems(limit)
    order: list[str] = []
    for number, items in enumerate(steps):
        rows, unread = kept.get(items)
        assert set(rows) == set(items) & set(order)
        assert unread == [item for item in dict.fromkeys(items) if item not in order]
        kept.put(unread, [(item, number) for item in unread])
        order = (order + unread)[-limit:]
        rows, _ = kept.get(order)
        assert all(row[0] == item for item, row in rows.items())
        assert list(rows) == order


def test_old_rows_are_read_again_but_there_until_then(clock):
    kept = KeptItems(10, age_s=60.0)
    kept.put(["a", "b"], [(1,), (2,)])
    clock[0] += 29.0
    assert kept.get(["a", "b"]) == ({"a": (1,), "b": (2,)}, [])
    clock[0] += 32.0
    assert kept.get(["a", "b"]) == ({"a": (1,), "b": (2,)}, ["a", "b"])
    kept.put(["a"], [(3,)])
    assert kept.get(["a", "b"]) == ({"a": (3,), "b": (2,)}, ["b"])


def test_rows_that_were_read_at_once_do_not_age_at_once(clock):
    kept = KeptItems(1000, age_s=60.0)
    items = [str(i) for i in range(1000)]
    kept.put(items, [()] * 1000)
    clock[0] += 45.0
    assert 300 < len(kept.get(items)[1]) < 700
