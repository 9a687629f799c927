"""Reading ahead changes neither the items nor the errors."""

import threading
import time

import pytest

from narrowcast.components.train.loader import read_ahead


def num_readers():
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


def test_items_come_in_order_and_the_thread_ends():
    assert list(read_ahead(iter(range(100)))) == list(range(100))
    assert list(read_ahead(iter(()))) == []
    assert num_readers() == 0


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert num_readers() == 0


def test_it_reads_while_the_reader_works_and_no_further_than_told():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = read_ahead(items(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]  # one taken, three waiting, one in hand
    ahead.close()
    assert num_readers() == 0
