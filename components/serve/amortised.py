"""Several ranking requests scored at once, each user's history read once for all candidates and kept between requests.

Micro-batches and kept keys and values are after M-FALCON (arXiv 2402.17152).

Shape letters: B rows of all requests, b rows of one, N histories or other sequences of all, L sequence length, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import Batch
from narrowcast.components.data.schema import HISTORY
from narrowcast.components.serve.history_cache import HistoryCache, history_key, longest
from narrowcast.components.train.histories import HistoryState
from narrowcast.components.train.histories.mean import masked_mean
from narrowcast.components.train.scorer import Found

CACHE_BYTES = 64 << 20
MICRO_BATCH = 4096
"""Rows; of 64 to 4,096 the quickest for several requests together, and within 5 % of the quickest for one."""
ID_BYTES = np.dtype(np.int32).itemsize


class Histories(NamedTuple):
    """What was looked up of a request's history where no state is kept: one a row, or one for all its rows."""

    rows_BLD: Tensor
    valid_BL: Tensor

    def of(self, rows: slice) -> "Histories":
        """What some of the request's rows read."""
        return self if len(self.rows_BLD) == 1 else Histories(self.rows_BLD[rows], self.valid_BL[rows])


class Ranker:
    """Scores requests with one table lookup, every history read once, and the rest in micro-batches of `micro_batch`.

    Scores are those of one row at a time, up to the order of float32 sums. A history's state is kept under the ids that
    it was encoded from, so that a history that moved on is another entry. For one thread at a time, and for one model:
    a new version has a ranker of its own. `hits` and `misses` count the histories found in the cache and those encoded.
    """

    def __init__(self, packed: PackedModel, *, cache_bytes: int = CACHE_BYTES, micro_batch: int = MICRO_BATCH) -> None:
        self.network = packed.network
        self.scorer = packed.network.scorer
        self.micro_batch = micro_batch
        self.cache = HistoryCache(cache_bytes)
        self.hits = 0
        self.misses = 0

    @property
    def cached_bytes(self) -> int:
        return self.cache.num_bytes

    @torch.inference_mode()
    def score(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Click probabilities (float32, one a row) of several requests.

        A request is one user's candidates, with one history for all of them, or rows of several users with a history
        each.
        """
        if not batches:
            return []
        keys = [self._key(batch) for batch in batches]
        states = {key: state for key in keys if key is not None and (state := self.cache.get(key))}
        keyed = list(zip(keys, batches, strict=True))
        missing = {key: batch for key, batch in keyed if key is not None and key not in states}
        stateless = [batch for key, batch in keyed if key is None]
        self.misses += len(missing)
        self.hits += len(batches) - len(stateless) - len(missing)
        found = self._look_up(batches, [*missing.values(), *stateless])
        states |= self._encode(list(missing), found)
        others = self._others(stateless, found, len(missing))
        histories = [next(others) if key is None else states[key] for key in keys] if self.scorer.history else []
        probability_B = torch.sigmoid(self._logits(batches, histories, found)).float().numpy()
        return np.split(probability_B, np.cumsum([len(batch) for batch in batches])[:-1])

    def _key(self, batch: Batch) -> bytes | None:
        """What the state of a request's one history is kept under; None where there is no such state."""
        if self.scorer.amortised is None or len(batch.sequences[HISTORY]) != 1:
            return None
        return history_key(batch.sequences[HISTORY])

    def _look_up(self, batches: Sequence[Batch], unread: Sequence[Batch]) -> Found:
        """Everything that the requests look up, but of histories only those of `unread`."""
        sequences = {
            name: np.concatenate([batch.sequences[name] for batch in (unread if name == HISTORY else batches)])
            for name in self.scorer.layout.sequences
            if name != HISTORY or unread
        }
        if HISTORY in sequences:
            sequences[HISTORY] = sequences[HISTORY][:, : max(longest(sequences[HISTORY]), 1)]
        ids_BF = torch.from_numpy(np.concatenate([batch.ids_BF for batch in batches]))
        return self.network.lookup(ids_BF, {name: torch.from_numpy(ids_NL) for name, ids_NL in sequences.items()})

    def _encode(self, keys: Sequence[bytes], found: Found) -> dict[bytes, HistoryState]:
        """The states of the histories that were looked up first, encoded together, and kept."""
        states: dict[bytes, HistoryState] = {}
        if self.scorer.amortised is None or not keys:
            return states
        rows_NLD, valid_NL = found.rows_BLD[HISTORY][: len(keys)], found.valid_BL[HISTORY][: len(keys)]
        together = self.scorer.amortised.encode(rows_NLD, valid_NL)
        for i, key in enumerate(keys):
            states[key] = together.user(i, max(len(key) // ID_BYTES, 1))
            self.cache.put(key, states[key])
        return states

    def _others(self, batches: Sequence[Batch], found: Found, start: int) -> Iterator[Histories]:
        """Of requests without a state, the histories that were looked up, from row `start` on."""
        for batch in batches:
            stop = start + len(batch.sequences[HISTORY])
            yield Histories(found.rows_BLD[HISTORY][start:stop], found.valid_BL[HISTORY][start:stop])
            start = stop

    def _logits(self, batches: Sequence[Batch], histories: Sequence[HistoryState | Histories], found: Found) -> Tensor:
        """B, in micro-batches over all requests' rows."""
        dense_BN = torch.from_numpy(np.concatenate([batch.dense_BN for batch in batches]))
        tokens = {
            name: _spread(masked_mean(found.rows_BLD[name], found.valid_BL[name]), name, batches)
            for name in self.scorer.layout.sequences
            if name != HISTORY
        }
        logits = []
        for start in range(0, len(dense_BN), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            categorical_BFD = found.categorical_BFD[rows]
            own_tokens = {name: token_BD[rows] for name, token_BD in tokens.items()}
            if histories:
                candidate_BD = self.scorer.candidates(categorical_BFD)
                own_tokens[HISTORY] = self._history_tokens(_readers(start, candidate_BD, batches, histories))
            logits.append(self.scorer.head(self.scorer.joined(categorical_BFD, own_tokens), dense_BN[rows]))
        return torch.cat(logits)

    def _history_tokens(self, readers: Iterable[tuple[HistoryState | Histories, Tensor]]) -> Tensor:
        """Of histories, each with the candidates (b x D) that read it, one after the other."""
        encoder = self.scorer.amortised
        tokens, parts = [], []
        for history, candidate_bD in readers:
            if isinstance(history, HistoryState):
                parts.append((history, candidate_bD.unsqueeze(0)))
            elif encoder is not None:
                parts.append((encoder.encode(*history), candidate_bD.unsqueeze(1)))
            else:
                tokens.append(self.scorer.history_tokens(*history, candidate_bD))
        if encoder is not None:
            tokens = [tokens_BMD.flatten(0, 1) for tokens_BMD in encoder.score(parts)]
        return torch.cat(tokens)


def _readers(
    start: int, candidate_BD: Tensor, batches: Sequence[Batch], histories: Sequence[HistoryState | Histories]
) -> Iterator[tuple[HistoryState | Histories, Tensor]]:
    """Each request's history, with those of its candidates that are in the micro-batch from row `start` on."""
    first = -start
    for batch, history in zip(batches, histories, strict=True):
        begin, end = max(first, 0), min(first + len(batch), len(candidate_BD))
        if begin < end:
            own = slice(begin - first, end - first)
            yield history.of(own) if isinstance(history, Histories) else history, candidate_BD[begin:end]
        first += len(batch)


def _spread(token_ND: Tensor, name: str, batches: Sequence[Batch]) -> Tensor:
    """A token for every row of the requests, B x D, from one for every sequence `name` that they hold."""
    parts = token_ND.split([len(batch.sequences[name]) for batch in batches])
    return torch.cat([part.expand(len(batch), -1) for part, batch in zip(parts, batches, strict=True)])
