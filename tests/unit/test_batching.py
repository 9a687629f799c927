"""The scorer's thread: what is scored together, in which order, and that one request's failure is its own."""

import asyncio
import threading

import numpy as np
import pytest

from narrowcast.components.data.encoded import Batch
from narrowcast.components.serve.batching import Batcher
from narrowcast.components.serve.protocol import NotReadyError


def batch(number: int, rows: int = 2) -> Batch:
    return Batch(ids_BF=np.full((rows, 1), number, np.int32), dense_BN=np.zeros((rows, 0), np.float32), sequences={})


class Ranker:
    """Gives every row its id; fails for id 13; waits for `go`."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = threading.Event()
        self.began = threading.Event()
        self.go.set()

    def score(self, batches):
        self.began.set()
        assert self.go.wait(10)
        numbers = [int(one.ids_BF[0, 0]) for one in batches]
        self.calls.append(numbers)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [one.ids_BF[:, 0].astype(np.float32) for one in batches]


@pytest.fixture
def batcher():
    made = Batcher(batch_rows=8)
    yield made
    made.close()


async def held_up(batcher, ranker, numbers, rows=2, other=None):
    """Answers (or exceptions) to requests that all wait while the first is scored; the second may be `other`'s."""
    ranker.go.clear()
    first = asyncio.create_task(batcher.score(ranker, batch(100)))
    await asyncio.to_thread(ranker.began.wait, 10)
    tasks = [
        asyncio.create_task(batcher.score(other if other and i == 1 else ranker, batch(number, rows)))
        for i, number in enumerate(numbers)
    ]
    while batcher.num_waiting < len(numbers):
        await asyncio.sleep(0)
    ranker.go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_an_idle_thread_scores_at_once_and_alone(batcher):
    ranker = Ranker()
    scored = asyncio.run(batcher.score(ranker, batch(5)))
    assert scored.probability_M.tolist() == [5, 5]
    assert scored.num_requests == 1
    assert 0 <= scored.queue_seconds < 5


def test_what_waits_is_scored_together_up_to_the_rows(batcher):
    ranker = Ranker()
    answers = asyncio.run(held_up(batcher, ranker, [1, 2, 3, 4, 5, 6]))
    assert [answer.probability_M.tolist() for answer in answers] == [[n, n] for n in (1, 2, 3, 4, 5, 6)]
    assert ranker.calls == [[100], [1, 2, 3, 4], [5, 6]]
    assert [answer.num_requests for answer in answers] == [4, 4, 4, 4, 2, 2]


def test_a_request_over_the_rows_is_scored_alone(batcher):
    ranker = Ranker()
    asyncio.run(held_up(batcher, ranker, [1, 2, 3], rows=9))
    assert ranker.calls == [[100], [1], [2], [3]]


def test_two_rankers_requests_are_never_mixed(batcher):
    ranker, other = Ranker(), Ranker()
    answers = asyncio.run(held_up(batcher, ranker, [1, 2, 3], other=other))
    assert [answer.probability_M[0] for answer in answers] == [1, 2, 3]
    assert ranker.calls == [[100], [1], [3]]
    assert other.calls == [[2]]


def test_a_failure_is_its_own_requests(batcher):
    ranker = Ranker()
    answers = asyncio.run(held_up(batcher, ranker, [1, 13, 3]))
    assert [answers[0].probability_M[0], answers[2].probability_M[0]] == [1, 3]
    assert str(answers[1]) == "thirteen"
    assert batcher.is_alive()


def test_a_request_given_up_harms_no_other(batcher):
    async def run():
        ranker = Ranker()
        ranker.go.clear()
        tasks = [asyncio.create_task(batcher.score(ranker, batch(number))) for number in (1, 2, 3)]
        await asyncio.to_thread(ranker.began.wait, 10)
        tasks[1].cancel()
        ranker.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    assert answers[0].probability_M[0] == 1
    assert isinstance(answers[1], asyncio.CancelledError)
    assert answers[2].probability_M[0] == 3


def test_closing_answers_what_waits_and_refuses_more():
    async def run():
        batcher, ranker = Batcher(), Ranker()
        ranker.go.clear()
        tasks = [asyncio.create_task(batcher.score(ranker, batch(number))) for number in (1, 2)]
        await asyncio.to_thread(ranker.began.wait, 10)
        batcher.close()
        ranker.go.set()
        answers = await asyncio.gather(*tasks)
        with pytest.raises(NotReadyError, match="ending"):
            await batcher.score(ranker, batch(3))
        await asyncio.to_thread(batcher._thread.join, 10)
        return answers, batcher.is_alive()

    answers, alive = asyncio.run(run())
    assert [answer.probability_M[0] for answer in answers] == [1, 2]
    assert not alive


def test_no_answered_request_keeps_its_ranker_in_memory(batcher):
    import weakref

    ranker = Ranker()
    gone = weakref.ref(ranker)
    asyncio.run(batcher.score(ranker, batch(1)))
    asyncio.run(batcher.score(Ranker(), batch(2)))
    del ranker
    assert gone() is None
