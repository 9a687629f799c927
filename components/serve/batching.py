"""One thread that scores whatever requests wait, several at once where they are small.

Nothing is waited for: a request that finds the thread idle is scored alone and at once.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.data.encoded import Batch
from narrowcast.components.serve.protocol import NotReadyError

BATCH_ROWS = 4096
"""Candidates scored at once. Eight requests of 500 take 0.6 of the time that they take one by one, eight of 50 a third
(one thread, a small DeepFM); beyond, the first in line would wait longer for little."""


class Ranks(Protocol):
    """What scores: `Ranker`."""

    def score(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Probabilities (float32, M), and how long the request waited and was scored."""

    probability_M: NDArray[np.float32]
    queue_seconds: float
    score_seconds: float
    num_requests: int
    """Requests that were scored together."""


@dataclass(eq=False, kw_only=True, slots=True)
class Job:
    ranker: Ranks
    batch: Batch
    answer: asyncio.Future[Scored]
    queued: float = field(default_factory=time.perf_counter)


class Batcher:
    """Scores for the requests of one event loop, requests of different rankers never together."""

    def __init__(self, batch_rows: int = BATCH_ROWS) -> None:
        self.batch_rows = batch_rows
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return self._waiting.qsize()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    async def score(self, ranker: Ranks, batch: Batch) -> Scored:
        """The answer of `ranker`, or the exception that it raised. Raises NotReadyError after `close`."""
        if self._closed:
            raise NotReadyError("the server is ending: send the request to another")
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.put(Job(ranker=ranker, batch=batch, answer=answer))
        return await answer

    def close(self) -> None:
        """End the thread once all that waits is scored."""
        self._closed = True
        self._waiting.put(None)

    def _run(self) -> None:
        job = self._waiting.get()
        while job is not None:
            jobs = [job]
            job = self._gather(jobs)
            deliver(jobs, score_all(jobs))
            del jobs  # a version that was replaced must not stay in memory until the next request
            job = job or self._waiting.get()

    def _gather(self, jobs: list[Job]) -> Job | None:
        """Take what waits and may be scored with the first job; the one that may not is returned."""
        ranker, rows = jobs[0].ranker, len(jobs[0].batch)
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return None
            if job is None:
                self._waiting.put(None)
                return None
            rows += len(job.batch)
            if job.ranker is not ranker or rows > self.batch_rows:
                return job
            jobs.append(job)


def score_all(jobs: list[Job]) -> list[Scored | Exception]:
    """An answer for each; where scoring all together fails each is scored alone, so that none fails for another."""
    started = time.perf_counter()
    try:
        scores = jobs[0].ranker.score([job.batch for job in jobs])
    except Exception as error:
        return [error] if len(jobs) == 1 else [answer for job in jobs for answer in score_all([job])]
    seconds = time.perf_counter() - started
    return [
        Scored(
            probability_M=probability_M,
            queue_seconds=started - job.queued,
            score_seconds=seconds,
            num_requests=len(jobs),
        )
        for job, probability_M in zip(jobs, scores, strict=True)
    ]


def deliver(jobs: list[Job], answers: list[Scored | Exception]) -> None:
    """Wake the loop once for all."""
    loop = jobs[0].answer.get_loop()
    calls = [(job.answer, answer) for job, answer in zip(jobs, answers, strict=True)]
    try:
        loop.call_soon_threadsafe(_resolve, calls)
    except RuntimeError:  # the loop was closed: nobody waits any more
        return


def _resolve(calls: list[tuple["asyncio.Future[Scored]", Scored | Exception]]) -> None:
    for future, answer in calls:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
