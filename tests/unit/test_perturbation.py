"""Ensembles by perturbation against their definition and a closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from narrowcast.components.data.encoded import Batch, EncodedData, Split
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.metrics import logloss
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.perturbation import Ensemble, best_ensemble, golden_section, perturbed
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError


class OneWeight(nn.Module):
    """The logit is the weight for every row."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(weight)]))

    def forward(self, ids_BF, dense_BN, sequences):
        return self.weight.expand(len(ids_BF))


def split_of(label_B):
    rows = len(label_B)
    return Split(
        inputs=Batch(ids_BF=np.zeros((rows, 0), np.int32), dense_BN=np.zeros((rows, 0), np.float32), sequences={}),
        label_B=np.asarray(label_B, np.uint8),
        row_id_B=np.arange(rows),
        time_B=np.zeros(rows, np.int64),
        group_B=np.zeros(rows, np.int32),
    )


def test_the_ensemble_is_the_mean_over_pairs_of_opposite_noise():
    found = Ensemble(scale=0.5, members=6, seed=2).predict(OneWeight(1.0), split_of([0, 1]))
    logits = []
    for pair in range(3):
        noise = torch.randn(1, generator=torch.Generator().manual_seed(2 * 6 + pair)).item()
        logits += [1 + 0.5 * noise, 1 - 0.5 * noise]
    expected = np.mean([1 / (1 + math.exp(-logit)) for logit in logits])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.0, 3.0), members=st.sampled_from([2, 4, 10]), seed=st.integers(0, 2**31))
def test_the_model_keeps_its_bits(scale, members, seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with perturbed(model, scale, seed=seed):
        moved = any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert moved or scale < 1e-6
    with pytest.raises(ZeroDivisionError), perturbed(model, scale, seed=seed):
        raise ZeroDivisionError
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_noise_has_the_scale_it_says():
    model = nn.Embedding(400, 50)
    before = model.weight.detach().clone()
    with perturbed(model, 0.3, seed=1):
        noise = model.weight.detach() - before
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(noise.mean().item()) < 0.01


def test_an_overconfident_model_gains_and_a_calibrated_one_stays_as_it_is():
    label_B = [1] * 60 + [0] * 40
    split = split_of(label_B)
    overconfident = OneWeight(3.0)
    ensemble = best_ensemble(overconfident, split, members=10, evaluations=16)
    assert ensemble.scale > 0.5
    assert logloss(label_B, ensemble.predict(overconfident, split)) < logloss(label_B, predict(overconfident, split))
    calibrated = best_ensemble(OneWeight(math.log(0.6 / 0.4)), split)
    assert calibrated.scale == 0
    np.testing.assert_array_equal(calibrated.predict(overconfident, split), predict(overconfident, split))


@settings(max_examples=50, deadline=None)
@given(minimum=st.floats(-3.0, 5.0), evaluations=st.integers(2, 30))
def test_golden_section_closes_in_on_the_minimum(minimum, evaluations):
    calls = []

    def function(x):
        calls.append(x)
        return abs(x - minimum)

    low, high = -3.0, 5.0
    found, value = golden_section(function, low, high, evaluations)
    assert len(calls) == evaluations
    assert value == abs(found - minimum) == min(abs(x - minimum) for x in calls)
    assert value <= (high - low) * ((math.sqrt(5) - 1) / 2) ** (evaluations - 1) + 1e-9


def test_on_a_real_model_it_is_seeded_and_no_worse_on_validation(tiny_encoded):
    data = EncodedData(tiny_encoded)
    model = CTRModel(data.layout, full_plan(data.layout.table_rows, 4), ModelConfig(hidden=(8,)), seed=0)
    validation = data.split("validation")
    one, same = (best_ensemble(model, validation, members=4, evaluations=6) for _ in range(2))
    assert one == same
    np.testing.assert_array_equal(one.predict(model, validation), same.predict(model, validation))
    loss = logloss(validation.label_B, one.predict(model, validation))
    assert loss <= logloss(validation.label_B, predict(model, validation))


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"members": 3}, "members is 3"), ({"members": 0}, "members is 0"), ({"scale": -1.0}, "scale is -1.0")],
)
def test_bad_settings_are_sentences(bad, words):
    with pytest.raises(NarrowcastError, match=words):
        Ensemble(**{"scale": 0.1, **bad})
