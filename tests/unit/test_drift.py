import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from narrowcast.components.validate.drift import (
    check_drift,
    id_buckets,
    kolmogorov_smirnov,
    measure_drift,
    numeric_buckets,
    population_stability_index,
)
from narrowcast.errors import NarrowcastError


def test_psi_is_its_closed_form():
    counts = np.array([5, 3, 2]) * 10**8, np.array([2, 3, 5]) * 10**8
    assert population_stability_index(*counts) == pytest.approx(0.6 * math.log(5 / 2), rel=1e-6)


def test_psi_adds_half_a_row_to_every_bucket():
    p, q = (8.5 / 9, 0.5 / 9), (0.5 / 3, 2.5 / 3)
    expected = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert population_stability_index(np.array([8, 0, 0]), np.array([0, 2, 0])) == pytest.approx(expected)


def test_psi_is_symmetric_and_zero_for_equal_shares():
    a, b = np.array([10, 20, 70]), np.array([30, 30, 40])
    assert population_stability_index(a, b) == pytest.approx(population_stability_index(b, a))
    assert population_stability_index(a, a) == 0
    assert population_stability_index(a, np.zeros(3, np.int64)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_ks_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rng.integers(1, 300)).round(1)  # rounded, so that there are ties
    b = rng.normal(rng.random(), 2, size=rng.integers(1, 300)).round(1)
    assert kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_numeric_buckets_are_deciles_of_training():
    values = np.arange(1000.0)
    assert np.bincount(numeric_buckets(values, values)).tolist() == [100] * 10
    assert numeric_buckets(values, np.array([-5.0, 5000.0, np.nan])).tolist() == [0, 9, -1]
    assert set(numeric_buckets(np.zeros(50), np.array([-1.0, 0.0, 1.0]))) == {0, 1}


def test_few_ids_have_a_bucket_each_and_many_share_rank_buckets():
    assert sorted(id_buckets(np.array([5, 9, 1]))) == [0, 1, 2]
    counts = np.random.default_rng(0).zipf(1.5, 5000)
    buckets = id_buckets(counts)
    assert np.all(np.diff(buckets[np.argsort(-counts, kind="stable")]) >= 0)
    assert buckets.max() == 9
    rows = np.bincount(id_buckets(np.full(1000, 7)), weights=np.full(1000, 7))
    assert rows.tolist() == [700] * 10


@pytest.fixture
def frame(tiny_schema) -> pd.DataFrame:
    """Every input drawn from one distribution, whatever the split."""
    rng = np.random.default_rng(0)
    rows = 20_000
    columns: dict[str, object] = {"split": np.repeat(["train", "validation", "test"], [16_000, 2_000, 2_000])}
    for field in tiny_schema.inputs:
        ids = np.minimum(rng.zipf(1.3, rows), 200).astype(str)
        if field.type == "numeric":
            columns[field.name] = rng.lognormal(size=rows)
        elif field.type == "sequence":
            columns[field.name] = [list(part) for part in np.split(ids, np.sort(rng.integers(0, rows, rows - 1)))]
        else:
            columns[field.name] = rng.choice(["a", "b"], rows) if field.name == "device" else ids
    return pd.DataFrame(columns)


@pytest.fixture
def measure(tmp_path, tiny_schema):
    def run(frame, schema=tiny_schema):
        frame.to_parquet(tmp_path / "frame.parquet", index=False)
        return {field.name: field for field in measure_drift(tmp_path / "frame.parquet", schema)}

    return run


def later(frame):
    return frame["split"] != "train"


def test_no_shift_passes_everywhere(frame, measure, tiny_schema):
    drift = measure(frame)
    assert list(drift) == sorted(tiny_schema.input_names)
    assert all(field.passed and field.psi < 0.02 for field in drift.values())
    assert all((field.ks is not None) == (field.type == "numeric") for field in drift.values())
    check_drift(list(drift.values()))


def test_shift_is_seen_in_its_field_alone(frame, measure):
    still = measure(frame)
    frame.loc[later(frame), "price"] *= 5
    frame.loc[later(frame), "device"] = "a"
    drift = measure(frame)
    assert drift["price"].psi > 1
    assert drift["price"].ks > 0.5
    assert drift["device"].psi > 1
    assert {n: f for n, f in drift.items() if n not in ("price", "device")} == {
        n: f for n, f in still.items() if n not in ("price", "device")
    }


def test_unseen_ids_are_counted_apart_from_the_psi(frame, measure, tiny_schema):
    rows = np.flatnonzero(later(frame))[::2]
    frame.loc[rows, "item_id"] = "new"
    drift = measure(frame)["item_id"]
    seen_before = 0.5
    assert drift.unseen_share == pytest.approx(seen_before, abs=1e-3)
    assert drift.psi < 0.02
    strict = dataclasses.replace(tiny_schema, checks=dataclasses.replace(tiny_schema.checks, max_unseen=0.4))
    drift = measure(frame, strict)
    assert [name for name, field in drift.items() if not field.passed] == ["item_id"]
    with pytest.raises(
        NarrowcastError, match=r"field 'item_id' has a share of 0\.5 .* limit 0\.4: .*checks\.max_unseen"
    ):
        check_drift(list(drift.values()))


def test_many_ids_are_not_drift_but_a_move_to_the_tail_is(frame, measure):
    rng = np.random.default_rng(1)
    ids = rng.zipf(1.2, len(frame)) % 5000
    frame["item_id"] = ids.astype(str)
    assert measure(frame)["item_id"].psi < 0.1
    rank = pd.Series(ids[~later(frame)]).value_counts().index.to_numpy()
    tail = rng.choice(rank[50:], later(frame).sum())
    frame.loc[later(frame), "item_id"] = tail.astype(str)
    assert measure(frame)["item_id"].psi > 1


def test_values_that_go_missing_are_drift(frame, measure):
    frame.loc[later(frame), "price"] = np.nan
    frame.loc[later(frame), "city"] = None
    frame["tags"] = [[] if gone else tags for gone, tags in zip(later(frame), frame["tags"], strict=True)]
    drift = measure(frame)
    assert min(drift[name].psi for name in ("price", "city", "tags")) > 1
    assert drift["city"].unseen_share == 0


def test_a_field_without_any_value_does_not_drift(frame, measure):
    frame["city"] = pd.Series([None] * len(frame), dtype="string")
    assert (measure(frame)["city"].psi, measure(frame)["city"].unseen_share) == (0, 0)


def test_order_of_rows_does_not_count(frame, measure):
    assert measure(frame) == measure(frame.sample(frac=1, random_state=0))


def test_sentence_names_the_worst_field_and_the_number_of_others(frame, measure, tiny_schema):
    frame.loc[later(frame), "price"] *= 1000
    frame.loc[later(frame), "age"] *= 1.5
    strict = dataclasses.replace(tiny_schema, checks=dataclasses.replace(tiny_schema.checks, max_drift=0.1))
    with pytest.raises(
        NarrowcastError, match=r"field 'price' has a PSI of .*limit 0\.1: .*\(1 more field over a limit\)"
    ):
        check_drift(list(measure(frame, strict).values()))


@pytest.mark.parametrize(("split", "missing"), [("train", "validation and test"), ("test", "training")])
def test_a_period_without_rows_is_an_error(frame, measure, split, missing):
    with pytest.raises(NarrowcastError, match=f"no {missing} rows"):
        measure(frame.assign(split=split))


def test_trailing_counts_are_told_but_not_bounded(tiny_frame, tiny_schema):
    drift = {field.name: field for field in measure_drift(tiny_frame / "frame.parquet", tiny_schema)}
    assert drift["user_events"].psi > 1
    assert drift["user_events"].limit is None
    assert drift["user_events"].passed
    assert drift["user_click_rate"].limit == tiny_schema.checks.max_drift
