"""Stored rows and tables: the rounding's bound, exact bytes for any plan, and the rows that the trained table gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from narrowcast.components.compact.pack import data_bytes
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.train.plan import BITS, Block, TablePlan
from narrowcast.components.train.quantise import LEVEL, dequantise, float_scale, quantise
from narrowcast.components.train.tables import EmbeddingTable, TableGroup, round_as_stored
from narrowcast.errors import NarrowcastError


@st.composite
def tables(draw) -> tuple[TablePlan, int]:
    """Any plan of one table, and the model's width."""
    width = draw(st.integers(1, 9))
    projection = draw(st.none() | st.integers(1, 5))
    inner_width = None if projection else draw(st.none() | st.integers(1, 12))
    blocks, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        stop = start + draw(st.integers(1, 6))
        columns = draw(st.sets(st.integers(0, (projection or width) - 1)))
        bits = draw(st.sampled_from(BITS))
        blocks.append(Block(start=start, stop=stop, columns=tuple(sorted(columns)), bits=bits))
        start = stop
    rows = start + draw(st.integers(0, 5))
    return TablePlan(rows=rows, blocks=tuple(blocks), projection=projection, inner_width=inner_width), width


def trained(plan: TablePlan, width: int) -> EmbeddingTable:
    return TableGroup([plan], width, [torch.Generator().manual_seed(1)], 0.01).tables[0]


@settings(deadline=None, max_examples=60)
@given(tables())
def test_tensors_and_file_weigh_what_the_plan_says(tmp_path_factory, drawn):
    plan, width = drawn
    tensors = table_tensors(trained(plan, width))
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == plan.stored_bytes(width)
    path = tmp_path_factory.mktemp("tables") / "t.safetensors"
    save_file(tensors, path)
    assert data_bytes(path) == plan.stored_bytes(width)


@settings(deadline=None, max_examples=60)
@given(tables())
def test_lookups_equal_the_trained_table_with_its_values_rounded(drawn):
    plan, width = drawn
    table = trained(plan, width)
    packed = PackedTable(plan, width, table_tensors(table))
    round_as_stored(table.group)
    ids = torch.arange(plan.rows + 3).repeat(2).view(2, -1)
    torch.testing.assert_close(packed(ids), table(ids), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(tables())
def test_float32_without_inner_width_is_bit_equal(drawn):
    plan, width = drawn
    blocks = tuple(Block(start=b.start, stop=b.stop, columns=b.columns) for b in plan.blocks)
    plan = TablePlan(rows=plan.rows, blocks=blocks, projection=plan.projection)
    table = trained(plan, width)
    ids = torch.arange(plan.rows + 3)
    assert torch.equal(PackedTable(plan, width, table_tensors(table))(ids), table(ids))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from((8, 4, 2)),
    st.integers(1, 9),
    st.floats(-9, 1.5),
    st.integers(0, 2**31),
)
def test_rounding_stays_within_half_a_scale(bits, width, exponent, seed):
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    values, scale = quantise(rows, bits)
    assert values.shape == (7, (width * bits + 7) // 8)
    error = (dequantise(values, scale, bits, width) - rows).abs()
    cut_off = rows.abs().amax(1) - float_scale(scale) * LEVEL[bits]  # what float16 rounds a scale down by
    bound = torch.maximum(float_scale(scale) / 2, cut_off) * (1 + 1e-5)
    assert bool((error <= bound.unsqueeze(1)).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_come_back_as_zeros_and_the_largest_value_as_itself(bits):
    rows = torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.25, 0.5]])
    back = dequantise(*quantise(rows, bits), bits, 3)
    assert torch.equal(back[0], rows[0])
    assert back[1].tolist() == pytest.approx(rows[1].tolist(), abs=0.5 / LEVEL[bits])


def test_values_too_small_for_a_float16_scale_do_not_vanish_wrongly():
    values, scale = quantise(torch.tensor([[3e-6, -3e-6]]), 8)
    assert scale.item() > 0
    assert dequantise(values, scale, 8, 2).tolist()[0] == pytest.approx([3e-6, -3e-6], abs=3e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_values_that_cannot_be_stored_are_refused(value):
    with pytest.raises(NarrowcastError, match="cannot store"):
        quantise(torch.tensor([[0.1, value]]), 8)


def test_four_bits_lie_low_nibble_first():
    values, scale = quantise(torch.tensor([[7.0, -7.0, 1.0]]), 4)
    assert float_scale(scale).item() == 1.0
    assert values.tolist() == [[15 | 1 << 4, 9]]
