"""The features of one user and many candidates, within a deadline and whatever the store does."""

import asyncio
import logging
import math
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from narrowcast.components.features.online import OnlineFeatures, Owner, Row
from narrowcast.components.serve.breaker import Breaker
from narrowcast.components.serve.kept_items import KeptItems
from narrowcast.components.serve.threads import Threads

ITEMS_A_READ = 256
"""More items are read in parts, so that a long list is no store that hangs: the parts that come in time are used."""

logger = logging.getLogger(__name__)
_Read: TypeAlias = tuple[Owner, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """The schema's user and item inputs by name: one value each for the user's, one a candidate for the items'.

    `fallbacks` names the owners (`user`, `item`) of which the store did not answer for all in time. Such a user has the
    features of one without a past; so has such an item, unless older values of it are still in memory.
    """

    columns: dict[str, list[Any]]
    fallbacks: tuple[Owner, ...] = ()


class Lookups:
    """Looks features up for the requests of one event loop; see `find`.

    `deadline_ms` is for the user's and the items' reads together, which run side by side in `num_threads` threads, with
    `max_waiting` reads waiting for one. After `max_failures` requests in a row for which the store answered nothing, it
    is asked once in `retry_after_s` only, until it answers. `items_kept` items stay in memory: for good where the store
    cannot change (SQLite in its folder), else for at most `item_age_s`.
    """

    def __init__(
        self,
        features: OnlineFeatures,
        deadline_ms: float = 50.0,
        *,
        num_threads: int = 4,
        max_waiting: int = 64,
        max_failures: int = 5,
        retry_after_s: float = 1.0,
        items_kept: int = 100_000,
        item_age_s: float = 60.0,
    ) -> None:
        self.features = features
        self.deadline_ms = deadline_ms
        self._threads = Threads(num_threads, max_waiting, "lookup")
        self._breaker = Breaker(max_failures, retry_after_s)
        self._items = KeptItems(items_kept, item_age_s if features.may_change else math.inf)

    async def find(self, user: str, items: Sequence[str]) -> Looked:
        """The inputs of the user and the items, keys included; `Looked` says what an unanswered part is given.

        An id that the store has never seen is no fallback: it has defaults of its own, the same ones.
        """
        names = self.features.names
        kept, unread = self._items.get(items) if names["item"] else ({}, [])
        reads: list[_Read] = [("user", [user])] if names["user"] else []
        reads += [("item", unread[start : start + ITEMS_A_READ]) for start in range(0, len(unread), ITEMS_A_READ)]
        rows: dict[Owner, dict[str, Row]] = {"user": {}, "item": kept}
        unanswered: set[Owner] = set()
        for (owner, ids), answer in zip(reads, await self._ask(reads), strict=True):
            if answer is None:
                unanswered.add(owner)
            else:
                rows[owner] |= zip(ids, answer, strict=True)
        columns = self._columns("user", [user], rows["user"]) | self._columns("item", items, rows["item"])
        return Looked(columns=columns, fallbacks=tuple(sorted(unanswered, reverse=True)))

    def preload(self, items: Sequence[str]) -> None:
        """Read items into memory now, in this thread; as many as the store gives before it fails."""
        if not self.features.names["item"]:
            return
        for start in range(0, len(items), ITEMS_A_READ):
            try:
                self._fetch("item", list(items[start : start + ITEMS_A_READ]))
            except Exception as error:
                logger.warning("the feature store fails before all items are read: %s", error)
                return

    def close(self) -> None:
        """Let the threads end. Nothing may be asked after it."""
        self._threads.close()

    def _columns(self, owner: Owner, ids: Sequence[str], rows: dict[str, Row]) -> dict[str, list[Any]]:
        key, names = self.features.keys[owner], self.features.names[owner]
        if key is None:
            return {}
        default = self.features.defaults(owner)
        values = [list(column) for column in zip(*(rows.get(id_, default) for id_ in ids), strict=True)]
        return {key: list(ids), **dict(zip(names, values or [[] for _ in names], strict=True))}

    async def _ask(self, reads: Sequence[_Read]) -> list[list[Row] | None]:
        """Rows by read; None where the store did not answer in time, or was not asked."""
        if not reads or not self._breaker.allows():
            return [None] * len(reads)
        futures: list[asyncio.Future[list[Row]]] = []
        for owner, ids in reads:
            try:
                futures.append(asyncio.wrap_future(self._threads.submit(partial(self._fetch, owner, ids))))
            except queue.Full:
                break
        try:
            if futures:
                await asyncio.wait(futures, timeout=self.deadline_ms / 1000)
        finally:
            for future in futures:
                future.cancel()
        answers = [None if future.cancelled() or future.exception() else future.result() for future in futures]
        self._report(futures, answers)
        return answers + [None] * (len(reads) - len(futures))

    def _report(self, futures: Sequence[asyncio.Future[list[Row]]], answers: Sequence[list[Row] | None]) -> None:
        was_open = self._breaker.is_open
        answered = any(answer is not None for answer in answers)
        self._breaker.report(answered)
        if self._breaker.is_open != was_open:
            errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
            reason = next((f"{type(e).__name__} {e}" for e in errors if e), f"nothing within {self.deadline_ms:g} ms")
            if answered:
                logger.warning("the feature store answers again")
            else:
                logger.warning("the feature store does not answer (%s): defaults are used until it does", reason)

    def _fetch(self, owner: Owner, ids: list[str]) -> list[Row]:
        rows = self.features.read(owner, ids)
        if owner == "item":
            self._items.put(ids, rows)  # also what comes too late for its request
        return rows
