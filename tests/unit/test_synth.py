"""Synthetic clicks: same seed, same bytes; something to learn; drift that can be turned up; bounded memory."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema
from narrowcast.components.data.synth import CHUNK_ROWS, _auc, synth
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest

SMALL = {"users": 300, "items": 200}


def test_same_seed_same_bytes(tmp_path):
    rows = CHUNK_ROWS + 1000
    first = synth(tmp_path / "a", rows=rows, **SMALL, seed=7)
    (tmp_path / "again").mkdir()
    assert synth(tmp_path / "again" / "a", rows=rows, **SMALL, seed=7) == first
    assert digest(tmp_path / "a") == digest(tmp_path / "again" / "a")
    synth(tmp_path / "other" / "a", rows=rows, **SMALL, seed=8)
    assert digest(tmp_path / "a") != digest(tmp_path / "other" / "a")


def test_events_are_whole_and_in_time_order(tmp_path):
    rows = 2 * CHUNK_ROWS + 17
    made = synth(tmp_path / "raw", rows=rows, **SMALL, days=3)
    events = pd.read_parquet(tmp_path / "raw" / "events.parquet")
    assert events["event_id"].tolist() == list(range(rows))
    assert events["time_ms"].is_monotonic_increasing
    assert events["time_ms"].iloc[-1] - events["time_ms"].iloc[0] == pytest.approx(3 * 86_400_000, rel=0.001)
    assert events["user_id"].between(0, 299).all()
    assert events["item_id"].between(0, 199).all()
    assert made.click_rate == pytest.approx(events["click"].mean())
    assert 0.1 < made.click_rate < 0.5
    assert not events.loc[events["click"] == 0, "dwell_seconds"].any()


def test_popularity_is_a_power_law(tmp_path):
    synth(tmp_path / "raw", rows=200_000, users=1000, items=1000, zipf=1.0)
    counts = pd.read_parquet(tmp_path / "raw" / "events.parquet")["item_id"].value_counts().to_numpy()
    ranks = np.arange(1, 101)
    slope = np.polyfit(np.log(ranks), np.log(counts[:100]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.1)


def test_schema_reads_the_files(tmp_path):
    synth(tmp_path / "my-data", rows=2000, **SMALL)
    schema = Schema.load(tmp_path / "my-data" / "schema.yaml")
    assert schema.name == "my_data"
    assert schema.history is not None
    ingest(tmp_path / "my-data", schema, tmp_path / "dataset")
    assert len(pd.read_parquet(tmp_path / "dataset" / "events.parquet")) == 2000
    assert len(pd.read_parquet(tmp_path / "dataset" / "users.parquet")) == 300
    synth(tmp_path / "plain", rows=10, **SMALL, history=False)
    assert Schema.load(tmp_path / "plain" / "schema.yaml").history is None


def test_bayes_auc_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 50, 5000)
    label = rng.random(5000) < bins / 50
    clicks, others = np.bincount(bins[label], minlength=50), np.bincount(bins[~label], minlength=50)
    assert _auc(clicks, others) == pytest.approx(roc_auc_score(label, bins))
    assert _auc(clicks, np.zeros(50, np.int64)) == 0.5


def test_there_is_something_to_learn(tmp_path):
    """Rates of users and items in the first half rank the second half well above chance, and below the true AUC."""
    made = synth(tmp_path / "raw", rows=100_000, **SMALL)
    events = pd.read_parquet(tmp_path / "raw" / "events.parquet")
    early, late = events.iloc[:50_000], events.iloc[50_000:]

    def rates(*columns: str) -> pd.Series:
        seen = early.groupby(list(columns))["click"].agg(["sum", "count"])
        rate = ((seen["sum"] + 2) / (seen["count"] + 8)).rename("rate")
        return late[list(columns)].join(rate, on=list(columns))["rate"].fillna(0.25)

    by_item = roc_auc_score(late["click"], rates("item_id"))
    by_pair = roc_auc_score(late["click"], rates("item_id") + rates("user_id", "item_id"))
    assert 0.6 < by_item < by_pair < made.bayes_auc
    assert 0.8 < made.bayes_auc < 0.95


def shift_of_popularity(path) -> float:
    """Half the sum of the differences in items' shares between the first tenth and the last."""
    item = pd.read_parquet(path / "events.parquet")["item_id"]
    tenth = len(item) // 10
    first, last = item[:tenth].value_counts(normalize=True), item[-tenth:].value_counts(normalize=True)
    return float(first.sub(last, fill_value=0).abs().sum() / 2)


def click_rates_apart(path) -> float:
    """Mean difference in the click rate of a user and a kind between the first third and the last."""
    events = pd.read_parquet(path / "events.parquet").merge(pd.read_parquet(path / "items.parquet"), on="item_id")
    third = np.select([events["event_id"] < 100_000, events["event_id"] >= 200_000], [0, 2], 1)
    rates = events.groupby([third, "user_id", "kind"])["click"].agg(["mean", "count"]).unstack(0)
    enough = (rates["count"][[0, 2]] >= 50).all(axis=1)
    return float((rates["mean"][0] - rates["mean"][2]).abs()[enough].mean())


def test_drift_moves_popularity_and_taste(tmp_path):
    for drift in (0.0, 0.5, 1.0):
        synth(tmp_path / str(drift), rows=300_000, users=50, items=200, drift=drift)
    shifts = [shift_of_popularity(tmp_path / drift) for drift in ("0.0", "0.5", "1.0")]
    assert shifts[0] < 0.05
    assert shifts[0] + 0.2 < shifts[1] < shifts[2] - 0.1
    apart = [click_rates_apart(tmp_path / drift) for drift in ("0.0", "0.5", "1.0")]
    assert apart[0] < apart[1] < apart[2]


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"users": 0}, {"drift": 1.5}, {"drift": -0.1}, {"zipf": -1}, {"days": 0}]
)
def test_impossible_wishes(tmp_path, wrong):
    with pytest.raises(NarrowcastError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        synth(tmp_path / "raw", **({"rows": 10, **SMALL} | wrong))
    assert not (tmp_path / "raw").exists()


def test_memory_is_bounded(tmp_path):
    code = (
        "import sys, resource\n"
        "from narrowcast.components.data.synth import synth\n"
        "synth(sys.argv[1], rows=int(sys.argv[2]), users=10_000, items=5_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )

    def peak_mb(rows: int) -> float:
        command = [sys.executable, "-c", code, str(tmp_path / str(rows)), str(rows)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_mb(1_000_000) - peak_mb(100_000) < 64  # the added rows are 45 bytes each, and more in the making
