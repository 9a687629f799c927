"""The features of one user and many candidates, within a deadline and whatever the store does."""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from narrowcast.components.features.online import OnlineFeatures, Owner, Row
from narrowcast.components.serve.threads import Threads


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """The schema's user and item inputs by name: one value each for the user's, one a candidate for the items'.

    `fallbacks` names the owners (`user`, `item`) that the store did not answer for in time: the user then has the
    features of one without a past, and so have the items, but those whose values are still in memory.
    """

    columns: dict[str, list[Any]]
    fallbacks: tuple[Owner, ...] = ()


class Lookups:
    """Looks features up for the requests of one event loop; see `find`.

    `deadline_ms` is for the user's and the items' reads together, which run side by side in `num_threads` threads, with
    `max_waiting` reads waiting for one. After `max_failures` requests in a row that the store failed, it is asked once
    in `retry_after_s` only, until it answers. `items_kept` items stay in memory, up to `item_age_s` seconds (None: for
    good; the folder's own store never changes).
    """

    def __init__(
        self,
        features: OnlineFeatures,
        deadline_ms: float = 50.0,
        *,
        num_threads: int = 8,
        max_waiting: int = 64,
        max_failures: int = 5,
        retry_after_s: float = 1.0,
        items_kept: int = 100_000,
        item_age_s: float | None = None,
    ) -> None:
        self.features = features
        self.deadline_ms = deadline_ms
        self._threads = Threads(num_threads, max_waiting, "lookup")
        self._breaker = Breaker(max_failures, retry_after_s)
        self._items = KeptItems(items_kept, item_age_s)

    async def find(self, user: str, items: Sequence[str]) -> Looked:
        """The inputs of the user and the items, keys included; `Looked` says what an unanswered part is given.

        An id that the store has never seen is no fallback: it has defaults of its own, the same ones.
        """
        keys = self.features.keys
        rows, unread = self._items.get(items) if keys["item"] else ({}, [])
        asked: dict[Owner, list[str]] = {"user": [user], "item": unread}
        asked = {owner: ids for owner, ids in asked.items() if ids and self.features.names[owner]}
        found = await self._read(asked)
        columns: dict[str, list[Any]] = {}
        if keys["user"]:
            (row,) = found.get("user") or [self.features.defaults("user")]
            columns[keys["user"]] = [user]
            columns |= {name: [value] for name, value in zip(self.features.names["user"], row, strict=True)}
        if keys["item"]:
            rows |= zip(unread, found.get("item", ()), strict=False)
            default = self.features.defaults("item")
            values = [list(column) for column in zip(*(rows.get(item, default) for item in items), strict=True)]
            names = self.features.names["item"]
            columns |= {keys["item"]: list(items), **dict(zip(names, values or [[]] * len(names), strict=True))}
        return Looked(columns=columns, fallbacks=tuple(owner for owner in asked if owner not in found))

    def close(self) -> None:
        """Let the threads end. Nothing may be asked after it."""
        self._threads.close()

    async def _read(self, asked: dict[Owner, list[str]]) -> dict[Owner, list[Row]]:
        """The rows of those owners that the store answered for in time."""
        if not asked or not self._breaker.allows():
            return {}
        reads: dict[Owner, asyncio.Future[list[Row]]] = {}
        for owner, ids in asked.items():
            try:
                reads[owner] = asyncio.wrap_future(self._threads.submit(partial(self._fetch, owner, ids)))
            except queue.Full:
                break
        if reads:
            _, late = await asyncio.wait(reads.values(), timeout=self.deadline_ms / 1000)
            for read in late:
                read.cancel()
        found = {
            owner: read.result()
            for owner, read in reads.items()
            if read.done() and not read.cancelled() and read.exception() is None
        }
        self._breaker.report(len(found) == len(asked))
        return found

    def _fetch(self, owner: Owner, ids: list[str]) -> list[Row]:
        rows = self.features.read(owner, ids)
        if owner == "item":
            self._items.put(ids, rows)
        return rows


class Breaker:
    """Says whether to ask a store: always, until it failed `max_failures` times in a row; then once in a while."""

    def __init__(self, max_failures: int, retry_after_s: float) -> None:
        self.max_failures = max_failures
        self.retry_after_s = retry_after_s
        self.failures = 0
        self._retry_at = 0.0

    def allows(self) -> bool:
        if self.failures < self.max_failures:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self.retry_after_s
        return True

    def report(self, answered: bool) -> None:
        self.failures = 0 if answered else self.failures + 1
        if self.failures >= self.max_failures:
            self._retry_at = time.monotonic() + self.retry_after_s


class KeptItems:
    """Rows of at most `limit` items, the earliest read leaving first; used from several threads."""

    def __init__(self, limit: int, age_s: float | None) -> None:
        self._limit = limit
        self._age_s = age_s
        self._kept: dict[str, tuple[Row, float]] = {}
        self._lock = threading.Lock()

    def get(self, items: Sequence[str]) -> tuple[dict[str, Row], list[str]]:
        """The rows kept, however old, and the items that must be read: those not kept or too old."""
        oldest = 0.0 if self._age_s is None else time.monotonic() - self._age_s
        rows: dict[str, Row] = {}
        unread: list[str] = []
        for item in dict.fromkeys(items):
            kept = self._kept.get(item)
            if kept is not None:
                rows[item] = kept[0]
            if kept is None or kept[1] < oldest:
                unread.append(item)
        return rows, unread

    def put(self, items: Sequence[str], rows: Sequence[Row]) -> None:
        now = time.monotonic()
        with self._lock:
            for item, row in zip(items, rows, strict=True):
                self._kept.pop(item, None)
                self._kept[item] = (row, now)
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
