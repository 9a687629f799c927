"""Rounding of rows: its bounds, the scales, what is refused, and the bytes that values of few bits lie in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.train.quantise import (
    CHUNK,
    CLIPS,
    LEVEL,
    dequantise,
    float_scale,
    packed_bits,
    quantise,
    rounded,
    to_float16,
    unpacked_bits,
)
from narrowcast.errors import NarrowcastError

INTEGERS = (8, 4, 2)


@st.composite
def drawn_rows(draw) -> torch.Tensor:
    """Rows of any scale that can be stored, some with zeros, equal values or one value far beyond the others."""
    width = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    rows = rng.normal(size=(9, width)) * 10.0 ** rng.uniform(-9, 0.3, (9, 1))
    rows[0] = 0
    rows[1, rng.integers(width)] = 0
    rows[2] = rows[2, 0]
    rows[3, 0] *= 30
    return torch.tensor(rows, dtype=torch.float32)


@settings(deadline=None, max_examples=100)
@given(drawn_rows(), st.sampled_from(INTEGERS))
def test_no_value_is_off_by_more_than_half_a_scale_or_what_was_cut_off(rows, bits):
    values, scale = quantise(rows, bits)
    assert values.shape == (len(rows), -(-rows.shape[1] * bits // 8))
    error = (dequantise(values, scale, bits, rows.shape[1]) - rows).abs()
    cut_off = rows.abs().amax(1) - float_scale(scale) * LEVEL[bits]
    bound = torch.maximum(float_scale(scale) / 2, cut_off) * (1 + 1e-5)
    assert bool((error <= bound.unsqueeze(1)).all())


@settings(deadline=None, max_examples=100)
@given(drawn_rows(), st.sampled_from((4, 2)))
def test_a_rows_error_is_bounded_by_its_largest_value(rows, bits):
    error = dequantise(*quantise(rows, bits), bits, rows.shape[1]) - rows
    bound = (0.5625 * rows.abs().amax(1) / LEVEL[bits]).clamp(min=2**-24) * (1 + 1e-5)
    assert bool((error.square().mean(1).sqrt() <= bound).all())


@settings(deadline=None, max_examples=60)
@given(drawn_rows(), st.sampled_from((4, 2)))
def test_of_the_scales_tried_none_errs_less(rows, bits):
    """Row by row, by plain search among the least scale that reaches the largest value and the ones below it."""
    found = dequantise(*quantise(rows, bits), bits, rows.shape[1]).double().numpy()
    scales = float_scale(torch.arange(256, dtype=torch.uint8)).double().numpy()
    levels = np.arange(-LEVEL[bits], LEVEL[bits] + 1)
    for row, mine in zip(rows.double().numpy(), found, strict=True):
        largest = np.abs(row).max()
        first = max(1, int(np.searchsorted(scales * LEVEL[bits], largest * (1 - 1e-6))))
        errors = []
        for code in range(first, max(first - CLIPS[bits], 0), -1):
            grid = scales[code] * levels
            errors.append(((grid[np.abs(row[:, None] - grid).argmin(1)] - row) ** 2).sum())
        if largest:
            assert ((mine - row) ** 2).sum() <= min(errors) * (1 + 1e-4) + 1e-9 * largest**2


@settings(deadline=None, max_examples=100)
@given(drawn_rows(), st.sampled_from((16, *INTEGERS)), st.data())
def test_rounding_in_training_gives_the_stored_values(rows, bits, data):
    """Columns that are not stored, and whatever other rows there are, change nothing."""
    width = rows.shape[1]
    columns = sorted(data.draw(st.sets(st.integers(0, width - 1))))
    kept = torch.zeros(width)
    kept[columns] = 1
    mine = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    found = rounded((rows * kept)[mine], bits, kept.expand(len(mine), -1))
    if bits == 16:
        stored = rows[:, columns].half().float()
    else:
        stored = dequantise(*quantise(rows[:, columns], bits), bits, len(columns))
    assert torch.equal(found[:, columns], stored[mine])
    assert bool((found[:, kept == 0] == 0).all())


@pytest.mark.parametrize("bits", INTEGERS)
def test_rows_beyond_a_chunk_are_rounded_alike(bits):
    rows = torch.randn(CHUNK + 3, 2, generator=torch.Generator().manual_seed(0))
    values, scale = quantise(rows, bits)
    last_values, last_scale = quantise(rows[-5:], bits)
    assert torch.equal(values[-5:], last_values)
    assert torch.equal(scale[-5:], last_scale)


@pytest.mark.parametrize("bits", INTEGERS)
def test_zeros_come_back_as_zeros_and_no_rows_as_none(bits):
    values, scale = quantise(torch.zeros(2, 3), bits)
    assert scale.tolist() == [0, 0]
    assert dequantise(values, scale, bits, 3).tolist() == [[0, 0, 0]] * 2
    assert dequantise(*quantise(torch.zeros(0, 3), bits), bits, 3).shape == (0, 3)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_largest_value_comes_back_nearly_as_itself(bits):
    back = dequantise(*quantise(torch.tensor([[-0.5, 0.25, 0.5]]), bits), bits, 3)
    assert back[0].tolist() == pytest.approx([-0.5, 0.25, 0.5], abs=0.5625 / LEVEL[bits])


def test_two_bits_hold_four_levels_exactly():
    rows = torch.tensor([[-1.5, -0.5, 0.5, 1.5]]) * 2.0**-7
    assert torch.equal(dequantise(*quantise(rows, 2), 2, 4), rows)


def test_values_too_small_for_a_float16_scale_do_not_vanish_wrongly():
    values, scale = quantise(torch.tensor([[3e-6, -3e-6]]), 8)
    assert scale.item() > 0
    assert dequantise(values, scale, 8, 2).tolist()[0] == pytest.approx([3e-6, -3e-6], abs=3e-8)


def test_byte_scales_rise_by_an_eighth_of_a_power_of_two():
    scales = float_scale(torch.arange(256, dtype=torch.uint8)).tolist()
    expected = [0.0, *((1 + code % 8 / 8) * 2.0 ** (code // 8 - 24) for code in range(1, 256))]
    assert scales == expected


@pytest.mark.parametrize("bits", [4, 2])
def test_every_byte_scale_is_reached(bits):
    scales = float_scale(torch.arange(1, 256, dtype=torch.uint8))
    rows = (scales * LEVEL[bits]).unsqueeze(1).repeat(1, 3)
    assert torch.equal(dequantise(*quantise(rows, bits), bits, 3), rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
@pytest.mark.parametrize("bits", [16, *INTEGERS])
def test_values_that_cannot_be_stored_are_refused(bits, value):
    rows = torch.tensor([[0.1, value]])
    with pytest.raises(NarrowcastError, match=f"{bits} bits cannot store"):
        to_float16(rows) if bits == 16 else quantise(rows, bits)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(INTEGERS), st.integers(0, 9), st.integers(0, 4), st.integers(0, 2**31))
def test_bits_fill_bytes_from_the_low_end(bits, width, num_rows, seed):
    integers = np.random.default_rng(seed).integers(0, 2**bits, (num_rows, width))
    stored = packed_bits(torch.tensor(integers, dtype=torch.uint8), bits)
    expected = [[0] * -(-width * bits // 8) for _ in range(num_rows)]
    for r in range(num_rows):
        for c in range(width):
            expected[r][c * bits // 8] |= int(integers[r, c]) << (c * bits % 8)
    assert stored.dtype == torch.uint8
    assert stored.tolist() == expected
    assert unpacked_bits(stored, bits, width).tolist() == integers.tolist()
