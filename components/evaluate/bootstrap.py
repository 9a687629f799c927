"""The paired bootstrap of an AUC difference: two models, the same resampled rows.

Shape letters: B rows, S resamples, G groups of equal score.
"""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 300
ROWS_AT_A_TIME = 4_000_000
"""Resampled rows held in memory at a time."""


def auc_difference_interval(
    label_B: NDArray[np.uint8],
    challenger_B: NDArray[np.float32],
    champion_B: NDArray[np.float32],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of AUC(challenger) - AUC(champion) over rows drawn with replacement.

    The percentile method of Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Both models
    see the same draw, so that what is common to them cancels. Same seed, same interval. A draw that holds one class
    only has no AUC and is left out; with a single class among the rows themselves the interval is (nan, nan).
    """
    if label_B.min(initial=1) == label_B.max(initial=0):
        return float("nan"), float("nan")
    orders = [_Order(label_B.astype(np.int64), np.asarray(scores)) for scores in (challenger_B, champion_B)]
    rng = np.random.default_rng(seed)
    rows = len(label_B)
    differences = []
    for start in range(0, resamples, chunk := max(1, ROWS_AT_A_TIME // rows)):
        draws = min(chunk, resamples - start)
        count_SB = np.stack([np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(draws)])
        challenger_S, champion_S = (order.auc(count_SB) for order in orders)
        differences.append(challenger_S - champion_S)
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.concatenate(differences), [tail, 1 - tail])
    return float(low), float(high)


class _Order:
    """One model's rows by ascending score, sorted once for all resamples."""

    def __init__(self, label_B: NDArray[np.int64], score_B: NDArray[np.float32]) -> None:
        self.order_B = np.argsort(score_B, kind="stable")
        self.label_B = label_B[self.order_B]
        sorted_B = score_B[self.order_B]
        self.starts_G = np.flatnonzero(np.concatenate(([True], sorted_B[1:] != sorted_B[:-1])))

    def auc(self, count_SB: NDArray[np.int64]) -> NDArray[np.float64]:
        """AUC of every resample, given how often it drew each row: pairs won, ties half, over all pairs."""
        count_SB = count_SB[:, self.order_B]
        positive_SG = np.add.reduceat(count_SB * self.label_B, self.starts_G, axis=1)
        negative_SG = np.add.reduceat(count_SB * (1 - self.label_B), self.starts_G, axis=1)
        below_SG = np.cumsum(negative_SG, axis=1) - negative_SG
        won_S = (positive_SG * (below_SG + negative_SG / 2)).sum(axis=1)
        pairs_S = positive_SG.sum(axis=1) * negative_SG.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return won_S / pairs_S
