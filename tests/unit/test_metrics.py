"""Metrics against closed forms and a plain count of pairs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.train.metrics import (
    all_metrics,
    auc,
    calibration,
    calibration_curve,
    group_auc,
    logloss,
    normalised_entropy,
)
from narrowcast.errors import NarrowcastError


def pair_auc(label_B, probability_B):
    """The definition: share of (click, non-click) pairs in the right order, ties counting half."""
    clicks = [p for y, p in zip(label_B, probability_B, strict=True) if y]
    others = [p for y, p in zip(label_B, probability_B, strict=True) if not y]
    wins = sum((c > o) + 0.5 * (c == o) for c in clicks for o in others)
    return wins / (len(clicks) * len(others))


def test_auc_of_a_known_order():
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc([0, 1], [0.5, 0.5]) == 0.5
    assert auc([1, 0], [0.9, 0.1]) == 1.0


rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_auc_and_group_auc_equal_their_definitions(rows):
    label_B, score_B, group_B = (np.array(column) for column in zip(*rows, strict=True))
    weighted, num_rows = 0.0, 0
    for group in set(group_B.tolist()):
        inside = group_B == group
        if 0 < label_B[inside].sum() < inside.sum():
            weighted += inside.sum() * pair_auc(label_B[inside], score_B[inside])
            num_rows += inside.sum()
    assert group_auc(label_B, score_B, group_B) == pytest.approx(weighted / num_rows if num_rows else 0.5)
    if 0 < label_B.sum() < len(label_B):
        assert auc(label_B, score_B) == pytest.approx(pair_auc(label_B, score_B))


def test_auc_of_one_class_is_a_sentence():
    with pytest.raises(NarrowcastError, match="all 3 rows have the same label"):
        auc([1, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(NarrowcastError, match="clicks and non-clicks"):
        auc([], [])


def test_logloss_of_known_probabilities():
    assert logloss([1, 0], [0.8, 0.4]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert logloss([0, 1], np.array([1.0, 0.0], np.float32)) == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_normalised_entropy_is_one_for_the_mean_rate_and_less_for_better():
    label_B = np.array([1, 0, 0, 0])
    assert normalised_entropy(label_B, np.full(4, 0.25)) == pytest.approx(1.0)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalised_entropy(label_B, [0.7, 0.1, 0.1, 0.1]) == pytest.approx(
        -(math.log(0.7) + 3 * math.log(0.9)) / 4 / entropy
    )


def test_calibration_is_expected_over_observed():
    assert calibration([1, 0, 1, 0], [0.5, 0.5, 0.75, 0.25]) == pytest.approx(1.0)
    assert calibration([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]) == pytest.approx(2.0)


def test_calibration_curve_accounts_for_every_row_and_follows_the_rates():
    rng = np.random.default_rng(0)
    probability_B = rng.random(20_003)
    label_B = rng.random(20_003) < probability_B
    curve = calibration_curve(label_B, probability_B, num_bins=10)
    assert sum(point["rows"] for point in curve) == 20_003
    assert [point["predicted"] for point in curve] == sorted(point["predicted"] for point in curve)
    assert all(abs(point["predicted"] - point["observed"]) < 0.04 for point in curve)


def test_all_metrics_names():
    found = all_metrics([0, 1, 0, 1], [0.2, 0.6, 0.4, 0.3], [0, 0, 1, 1])
    assert list(found) == ["auc", "logloss", "gauc", "normalised_entropy", "calibration"]
    assert found["auc"] == 0.75
    assert found["gauc"] == 0.5
