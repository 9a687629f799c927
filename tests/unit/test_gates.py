"""One gate at a time, on scores made up for it."""

import numpy as np
import pytest

from narrowcast.components.data.encoded import Batch, Split
from narrowcast.components.evaluate.gates import (
    _bytes,
    _gate,
    _metrics,
    _parity_bound,
    _parity_packed,
    _quality_champion,
    _quality_full,
)
from narrowcast.components.evaluate.scores import Attempt, NoChampionError
from narrowcast.components.train.metrics import auc
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

ROWS = 2000


@pytest.fixture(scope="module")
def held_out():
    rng = np.random.default_rng(0)
    inputs = Batch(ids_BF=np.zeros((ROWS, 1), np.int32), dense_BN=np.zeros((ROWS, 0), np.float32), sequences={})
    zeros = np.zeros(ROWS, np.int64)
    label = rng.integers(0, 2, ROWS).astype(np.uint8)
    return Split(inputs=inputs, label_B=label, row_id_B=zeros, time_B=zeros, group_B=zeros.astype(np.int32))


def scored(split, noise, seed=1):
    """Probabilities of a model that is worse the more noise it has."""
    rng = np.random.default_rng(seed)
    logit = split.label_B + rng.normal(0, noise, len(split))
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def attempts(**scores):
    def failing(error):
        raise error

    return {
        k: Attempt((lambda v=v: failing(v)) if isinstance(v, Exception) else (lambda v=v: v)) for k, v in scores.items()
    }


def test_quality_full_holds_the_loss_to_its_limit(held_out):
    full, packed = scored(held_out, 1.0), scored(held_out, 1.3)
    scores = attempts(full=full, packed=packed)
    loss = auc(held_out.label_B, full) - auc(held_out.label_B, packed)
    assert loss > 0.01
    over = _gate("quality_full", loss - 1e-9, lambda: _quality_full(held_out, scores))
    assert over.value == pytest.approx(loss)
    assert not over.passed
    assert "over the limit" in over.sentence
    assert _gate("quality_full", loss + 1e-9, lambda: _quality_full(held_out, scores)).passed


def champion_gate(split, packed, champion, limit=0.005):
    scores = attempts(packed=packed, champion=champion)
    return _gate("quality_champion", limit, lambda: _quality_champion(split, scores, 0))


def test_quality_champion_fails_only_what_is_worse_for_certain(held_out):
    good, worse = scored(held_out, 1.0), scored(held_out, 2.0, seed=2)
    assert not champion_gate(held_out, worse, good).passed
    assert champion_gate(held_out, good, worse).passed
    assert champion_gate(held_out, good, good).value == 0.0
    as_good = champion_gate(held_out, scored(held_out, 1.0, seed=3), good)
    assert as_good.passed
    assert "95 % interval" in as_good.sentence


def test_no_champion_passes_but_a_failure_to_score_one_does_not(held_out):
    good = scored(held_out, 1.0)
    without = champion_gate(held_out, good, NoChampionError("no champion is deployed"))
    assert without.passed
    assert without.value is None
    assert without.sentence == "no champion is deployed"
    assert not champion_gate(held_out, good, NarrowcastError("input 'x' is missing")).passed
    broken = champion_gate(held_out, NarrowcastError("tables.safetensors is damaged"), NoChampionError("none"))
    assert not broken.passed
    assert broken.sentence == "tables.safetensors is damaged"


def test_parity_packed_and_its_bound(held_out, tmp_path):
    compact = scored(held_out, 1.0)
    packed = compact.copy()
    packed[7] += np.float32(1e-3)
    assert _parity_bound(tmp_path) == 1e-6
    write_json(tmp_path / "manifest.json", {"parity": {"max_difference": 1e-3, "bound": 2e-3}})
    assert _parity_bound(tmp_path) == 2e-3
    scores = attempts(packed=packed, compact=compact)
    assert _gate("parity_packed", 2e-3, lambda: _parity_packed(scores)).passed
    tight = _gate("parity_packed", 5e-4, lambda: _parity_packed(scores))
    assert not tight.passed
    assert tight.value == pytest.approx(1e-3, rel=1e-3)


def test_bytes_are_those_of_the_file_less_its_header(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file(
        {"a.0.values": torch.zeros(10, 3), "a.0.scale": torch.zeros(7, dtype=torch.float16)},
        tmp_path / "tables.safetensors",
    )
    weighed = _gate("bytes", 134, lambda: _bytes(tmp_path))
    assert weighed.value == 134
    assert weighed.passed
    assert not _gate("bytes", 133, lambda: _bytes(tmp_path)).passed
    assert not _gate("bytes", 134, lambda: _bytes(tmp_path / "nowhere")).passed


def test_a_model_that_says_nan_fails_and_has_no_metrics(held_out):
    nan = np.full(ROWS, np.nan, np.float32)
    gate = _gate("parity_packed", 1.0, lambda: _parity_packed(attempts(packed=nan, compact=scored(held_out, 1.0))))
    assert gate.value is None
    assert not gate.passed
    assert _metrics(held_out, attempts(packed=nan)["packed"]) is None
    assert not _gate("x", 0.1, lambda: 1 / 0).passed
    assert "ZeroDivisionError" in _gate("x", 0.1, lambda: 1 / 0).sentence
