"""Items' features in memory: every request names hundreds, and most of them again and again."""

import math
import random
import threading
import time
from collections.abc import Sequence

from narrowcast.components.features.online import Row


class KeptItems:
    """Rows of at most `limit` items; the earliest read leave first. Several threads may use it.

    A row is fresh for `age_s` seconds at most, and half as long at least: what was read at once is not read again at
    once.
    """

    def __init__(self, limit: int, age_s: float = math.inf) -> None:
        self._limit = limit
        self._age_s = age_s
        self._kept: dict[str, tuple[Row, float]] = {}
        self._lock = threading.Lock()

    def get(self, items: Sequence[str]) -> tuple[dict[str, Row], list[str]]:
        """The rows there are, fresh or not, and the items that have no fresh one."""
        now = time.monotonic()
        rows: dict[str, Row] = {}
        unread: list[str] = []
        for item in dict.fromkeys(items):
            kept = self._kept.get(item)
            if kept is None:
                unread.append(item)
                continue
            rows[item], fresh_until = kept
            if fresh_until < now:
                unread.append(item)
        return rows, unread

    def put(self, items: Sequence[str], rows: Sequence[Row]) -> None:
        now = time.monotonic()
        with self._lock:
            for item, row in zip(items, rows, strict=True):
                self._kept.pop(item, None)
                age_s = self._age_s if math.isinf(self._age_s) else random.uniform(self._age_s / 2, self._age_s)
                self._kept[item] = (row, now + age_s)
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
