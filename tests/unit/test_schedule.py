"""Learning-rate schedules against their closed forms."""

import math

import pytest

from narrowcast.components.train.schedule import rate_factor


def factors(schedule, num_steps=10, warmup_steps=0, aucs=()):
    return [
        rate_factor(schedule, step, num_steps=num_steps, warmup_steps=warmup_steps, validation_aucs=aucs)
        for step in range(num_steps)
    ]


def test_closed_forms():
    assert factors("constant") == [1.0] * 10
    assert factors("linear") == pytest.approx([1 - step / 10 for step in range(10)])
    assert factors("cosine") == pytest.approx([math.cos(math.pi * step / 20) ** 2 for step in range(10)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "plateau"])
def test_the_warm_up_rises_in_equal_parts_and_the_schedule_follows_it(schedule):
    found = factors(schedule, num_steps=14, warmup_steps=4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == pytest.approx(factors(schedule, num_steps=10))


def test_a_warm_up_longer_than_the_training_just_rises():
    assert factors("cosine", num_steps=3, warmup_steps=6) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.parametrize(
    ("aucs", "factor"),
    [((), 1), ((0.6,), 1), ((0.6, 0.7), 1), ((0.7, 0.6), 0.1), ((0.7, 0.7), 0.1), ((0.7, 0.6, 0.71, 0.5, 0.7), 1e-3)],
)
def test_a_plateau_shrinks_the_rate_tenfold_an_epoch(aucs, factor):
    assert factors("plateau", aucs=aucs) == pytest.approx([factor] * 10)
