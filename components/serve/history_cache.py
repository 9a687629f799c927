"""The histories that a ranker keeps between requests, bounded by their bytes.

Shape letters: N histories, L items.
"""

import sys
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.data.encoded import PAD
from narrowcast.components.train.histories import HistoryState

ENTRY_BYTES = 1024
"""Counted for an entry beside its key and its tensors' memory: Python's objects and the dictionary's slot."""


class HistoryCache:
    """States of histories by their ids, at most `max_bytes` of them; those used longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.states: OrderedDict[bytes, HistoryState] = OrderedDict()
        """The one used longest ago first."""

    def get(self, key: bytes) -> HistoryState | None:
        state = self.states.get(key)
        if state is not None:
            self.states.move_to_end(key)
        return state

    def put(self, key: bytes, state: HistoryState) -> None:
        """Keep a state under a key that is not held yet, unless it alone would be over the bound."""
        size = entry_bytes(key, state)
        if size > self.max_bytes:
            return
        while self.num_bytes + size > self.max_bytes:
            self.num_bytes -= entry_bytes(*self.states.popitem(last=False))
        self.states[key] = state
        self.num_bytes += size


def entry_bytes(key: bytes, state: HistoryState) -> int:
    """What a cache entry weighs."""
    return state.num_bytes() + sys.getsizeof(key) + ENTRY_BYTES


def history_key(ids_1L: NDArray[np.int32]) -> bytes:
    """What a history is kept under: its ids without the padding at the end."""
    return ids_1L[0, : longest(ids_1L)].tobytes()


def longest(ids_NL: NDArray[np.int32]) -> int:
    """How many items the longest history has."""
    return int(np.flatnonzero((ids_NL != PAD).any(0)).max(initial=-1)) + 1
