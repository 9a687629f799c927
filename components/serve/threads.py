"""A bounded pool of threads for calls that may hang."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Threads:
    """At most `num_threads` calls run at once and `max_waiting` wait.

    Unlike those of `concurrent.futures` the threads are daemons: a call that never returns does not keep the process
    from ending.
    """

    def __init__(self, num_threads: int, max_waiting: int, name: str) -> None:
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """The future of a call, which may be cancelled until it runs. Raises queue.Full. For one thread's use."""
        if self._waiting.qsize() >= self._max_waiting:
            raise queue.Full
        future: Future[Any] = Future()
        self._waiting.put((future, call))
        return future

    def close(self) -> None:
        """Let the threads end, each after the call that it is in; calls that wait are cancelled."""
        self._closed = True
        while True:
            try:
                self._waiting.get_nowait()[0].cancel()
            except queue.Empty:
                break
        for _ in self._threads:
            self._waiting.put((Future(), lambda: None))

    def _work(self) -> None:
        while not self._closed:
            future, call = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # told to whoever waits
                future.set_exception(error)
            del future, call  # a waiting thread must not keep the last answer alive
