"""How good click probabilities are. All functions take label_B (0 or 1) and probability_B and compute in float64."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from narrowcast.errors import NarrowcastError

EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 in logloss: float32's sigmoid reaches both."""


def auc(label_B: ArrayLike, probability_B: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a click scores over a non-click, a tie counting half.

    Raises NarrowcastError where all labels are equal.
    """
    label_B = np.asarray(label_B)
    areas_G, _ = _areas(label_B, np.asarray(probability_B), np.zeros(len(label_B), np.int64))
    if not len(areas_G):
        raise NarrowcastError(
            f"AUC needs clicks and non-clicks, but all {len(label_B)} rows have the same label: "
            "hold out more rows (`split` in the schema)"
        )
    return float(areas_G[0])


def group_auc(label_B: ArrayLike, probability_B: ArrayLike, group_B: ArrayLike) -> float:
    """gAUC: the groups' AUCs averaged by their numbers of rows (arXiv 1706.06978, section 6.2).

    Groups without both labels do not count; 0.5 where none has both.
    """
    areas_G, rows_G = _areas(np.asarray(label_B), np.asarray(probability_B), np.asarray(group_B))
    return float(np.average(areas_G, weights=rows_G)) if len(areas_G) else 0.5


def logloss(label_B: ArrayLike, probability_B: ArrayLike) -> float:
    """Mean negative log-likelihood in nats."""
    label_B = np.asarray(label_B, np.float64)
    probability_B = np.clip(np.asarray(probability_B, np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(label_B * np.log(probability_B) + (1 - label_B) * np.log1p(-probability_B)))


def normalised_entropy(label_B: ArrayLike, probability_B: ArrayLike) -> float:
    """Logloss over that of always predicting the mean click rate (He et al., ADKDD 2014, section 3)."""
    label_B = np.asarray(label_B, np.float64)
    return logloss(label_B, probability_B) / logloss(label_B, np.full(len(label_B), label_B.mean()))


def calibration(label_B: ArrayLike, probability_B: ArrayLike) -> float:
    """Expected clicks over observed clicks (He et al., ADKDD 2014, section 3); 1 is best."""
    return float(np.sum(probability_B, dtype=np.float64) / max(np.sum(label_B, dtype=np.float64), 1.0))


def calibration_curve(label_B: ArrayLike, probability_B: ArrayLike, num_bins: int = 10) -> list[dict[str, float]]:
    """Mean `predicted` and `observed` click rate, and number of `rows`, in bins of equal counts by probability."""
    label_B, probability_B = np.asarray(label_B), np.asarray(probability_B)
    order_B = np.argsort(probability_B, kind="stable")
    return [
        {
            "predicted": float(probability_B[bin_rows].mean(dtype=np.float64)),
            "observed": float(label_B[bin_rows].mean(dtype=np.float64)),
            "rows": len(bin_rows),
        }
        for bin_rows in np.array_split(order_B, num_bins)
        if len(bin_rows)
    ]


def all_metrics(label_B: ArrayLike, probability_B: ArrayLike, group_B: ArrayLike) -> dict[str, float]:
    """Every figure by its name. Raises NarrowcastError where all labels are equal."""
    return {
        "auc": auc(label_B, probability_B),
        "logloss": logloss(label_B, probability_B),
        "gauc": group_auc(label_B, probability_B, group_B),
        "normalised_entropy": normalised_entropy(label_B, probability_B),
        "calibration": calibration(label_B, probability_B),
    }


def _areas(
    label_B: NDArray[Any], probability_B: NDArray[Any], group_B: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC and rows of every group G with both labels, from the clicks' mean ranks (Mann and Whitney's U)."""
    order_B = np.lexsort((probability_B, group_B))
    label_B, probability_B, group_B = label_B[order_B].astype(np.int64), probability_B[order_B], group_B[order_B]
    new_group_B = np.ones(len(order_B), bool)
    new_group_B[1:] = group_B[1:] != group_B[:-1]
    new_value_B = new_group_B.copy()
    new_value_B[1:] |= probability_B[1:] != probability_B[:-1]
    value_starts = np.flatnonzero(new_value_B)
    value_rows = np.diff(value_starts, append=len(order_B))
    group_starts = np.flatnonzero(new_group_B)
    rows_G = np.diff(group_starts, append=len(order_B))
    mean_rank_B = np.repeat(value_starts + (value_rows + 1) / 2, value_rows) - np.repeat(group_starts, rows_G)
    if not len(order_B):
        return np.zeros(0), rows_G
    clicks_G = np.add.reduceat(label_B, group_starts)
    rank_sum_G = np.add.reduceat(mean_rank_B * label_B, group_starts)
    both_G = (clicks_G > 0) & (clicks_G < rows_G)
    clicks_G, rows_G, rank_sum_G = clicks_G[both_G], rows_G[both_G], rank_sum_G[both_G]
    return (rank_sum_G - clicks_G * (clicks_G + 1) / 2) / (clicks_G * (rows_G - clicks_G)), rows_G
