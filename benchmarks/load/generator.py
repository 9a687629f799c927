"""The generator: sends what is due when it is due, and counts every latency from the scheduled time.

A generator that waits for an answer before it sends on lets a slow server set the pace, and the requests that would
have waited are never counted (coordinated omission). Here a request that leaves late has waited, and counts so.
"""

import asyncio
import select
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class LoadError(Exception):
    """No answer came; the text is the kind under which it is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`status` as HTTP has it; gRPC's are translated."""

    status: int
    body: Any


class Sender(Protocol):
    """Sends request number `index` and returns its answer, or raises LoadError."""

    def __call__(self, index: int) -> Awaitable[Answer]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One request. Seconds since the load began; `error` is empty where an answer with status 200 came."""

    scheduled_s: float
    sent_s: float
    done_s: float
    error: str
    answer: Answer | None

    @property
    def latency_s(self) -> float:
        return self.done_s - self.scheduled_s


async def offer(
    arrivals_s: NDArray[np.float64],
    send: Sender,
    *,
    timeout_s: float = 10.0,
    keep: Callable[[int], bool] = lambda index: True,
) -> list[Outcome]:
    """Send request i at `arrivals_s[i]` (ascending), however many are unanswered; the outcomes in that order.

    A request is given up `timeout_s` after it was scheduled. Answers' bodies are kept where `keep(i)`.
    """
    loop = asyncio.get_running_loop()
    outcomes: list[Outcome | None] = [None] * len(arrivals_s)
    start = loop.time()

    async def one(index: int, scheduled_s: float) -> None:
        sent_s = loop.time() - start
        answer, error = None, ""
        try:
            async with asyncio.timeout_at(start + scheduled_s + timeout_s):
                answer = await send(index)
            if answer.status != 200:
                error = f"status {answer.status}"
        except TimeoutError:
            error = "timeout"
        except LoadError as reason:
            error = str(reason)
        outcomes[index] = Outcome(
            scheduled_s=scheduled_s,
            sent_s=sent_s,
            done_s=loop.time() - start,
            error=error,
            answer=answer if keep(index) else None,
        )

    async with asyncio.TaskGroup() as group:
        for index, scheduled_s in enumerate(arrivals_s.tolist()):
            if (wait_s := start + scheduled_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            group.create_task(one(index, scheduled_s))
    return [outcome for outcome in outcomes if outcome is not None]


class FineTimers(selectors.DefaultSelector):
    """Waits to the microsecond, where `epoll` alone counts in milliseconds and wakes up late."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run in an event loop with `FineTimers`."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(FineTimers())) as runner:
        return runner.run(main)
