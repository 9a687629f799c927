"""The paired bootstrap against scikit-learn, draw by draw."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from narrowcast.components.evaluate.bootstrap import _Order, auc_difference_interval


def scores(rows: int = 400, seed: int = 0, ties: bool = True):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows).astype(np.uint8)
    good = (label + rng.normal(0, 1.0, rows)).astype(np.float32)
    poor = (label + rng.normal(0, 2.0, rows)).astype(np.float32)
    return label, *((np.round(s, 1) for s in (good, poor)) if ties else (good, poor))


@pytest.mark.parametrize("ties", [True, False])
def test_every_resample_has_sklearns_auc(ties):
    label, good, _ = scores(ties=ties)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(label), (20, len(label)))
    counts = np.stack([np.bincount(r, minlength=len(label)) for r in rows])
    expected = [roc_auc_score(label[r], good[r]) for r in rows]
    np.testing.assert_allclose(_Order(label.astype(np.int64), good).auc(counts), expected, atol=1e-12)


def test_the_interval_sees_a_real_difference_and_is_seeded():
    label, good, poor = scores(2000)
    low, high = auc_difference_interval(label, good, poor, seed=3)
    assert 0 < low < roc_auc_score(label, good) - roc_auc_score(label, poor) < high
    assert (low, high) == auc_difference_interval(label, good, poor, seed=3)
    assert (low, high) != auc_difference_interval(label, good, poor, seed=4)
    back = auc_difference_interval(label, poor, good, seed=3)
    assert back == pytest.approx((-high, -low))


def test_equal_models_differ_by_nothing():
    label, good, _ = scores()
    assert auc_difference_interval(label, good, good, seed=0) == (0.0, 0.0)


def test_coverage_of_the_mean_difference():
    """Fresh samples of one population: 95 % intervals hold the true difference about as often as they say."""
    big_label, big_good, big_poor = scores(200_000, seed=99, ties=False)
    truth = roc_auc_score(big_label, big_good) - roc_auc_score(big_label, big_poor)
    hits = 0
    for seed in range(60):
        label, good, poor = scores(300, seed=seed, ties=False)
        low, high = auc_difference_interval(label, good, poor, seed=seed, resamples=200)
        hits += low <= truth <= high
    assert 50 <= hits <= 60


def test_resamples_without_both_classes_are_left_out():
    label = np.array([1, 0, 0], dtype=np.uint8)
    low, high = auc_difference_interval(label, np.array([3.0, 2, 1]), np.array([1.0, 2, 3]), seed=0)
    assert (low, high) == (1.0, 1.0)
    one_class = auc_difference_interval(np.ones(3, dtype=np.uint8), np.arange(3.0), np.arange(3.0), seed=0)
    assert np.isnan(one_class).all()


def test_chunks_do_not_change_the_interval(monkeypatch):
    from narrowcast.components.evaluate import bootstrap

    label, good, poor = scores()
    whole = auc_difference_interval(label, good, poor, seed=5)
    monkeypatch.setattr(bootstrap, "ROWS_AT_A_TIME", 1000)
    assert auc_difference_interval(label, good, poor, seed=5) == whole
