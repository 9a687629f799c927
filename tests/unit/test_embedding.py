"""The embedding layer against a plain reference, over random plans."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.data.encoded import PAD, Layout
from narrowcast.components.train.embedding import EmbeddingLayer, look_up
from narrowcast.components.train.forms import COMBINES, QR, Codebook, Hash
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.components.train.sharing import RowMap
from narrowcast.components.train.tables import EmbeddingTable, TableGroup, form_of
from narrowcast.errors import NarrowcastError

WIDTH = 6
LAYOUT = Layout(
    categorical=("user_id", "type", "item_id"),
    numeric=(),
    sequences=("history",),
    table_of={"user_id": "user_id", "type": "type", "item_id": "item_id", "history": "item_id"},
    table_rows={"user_id": 9, "type": 3, "item_id": 7},
)


@st.composite
def blocks(draw, start: int, stop: int, internal: int) -> Block:
    """Any block, its ids with rows of their own or sharing them."""
    columns = tuple(sorted(draw(st.sets(st.integers(0, internal - 1)))))
    shared = (
        Hash(buckets=draw(st.integers(1, 9))),
        QR(remainders=draw(st.integers(1, 9)), combine=draw(st.sampled_from(COMBINES))),
    )
    possible = [form for form in shared if columns and not form.fault(stop - start, columns, 32)]
    return Block(start=start, stop=stop, columns=columns, form=draw(st.sampled_from([None, *possible])))


@st.composite
def table_plans(draw, rows=None):
    rows = rows or draw(st.integers(1, 30))
    kept = draw(st.integers(1, rows))
    cuts = sorted(draw(st.sets(st.integers(1, kept - 1), max_size=3))) if kept > 1 else []
    form = draw(st.sampled_from(["plain", "inner", "projection"]))
    internal = draw(st.integers(1, WIDTH)) if form == "projection" else WIDTH
    return TablePlan(
        rows=rows,
        blocks=tuple(
            draw(blocks(start, stop, internal)) for start, stop in zip([0, *cuts], [*cuts, kept], strict=True)
        ),
        projection=internal if form == "projection" else None,
        inner_width=draw(st.integers(1, 12)) if form == "inner" else None,
    )


def alone(plan: TablePlan, width: int, seed: int) -> EmbeddingTable:
    return TableGroup([plan], width, [torch.Generator().manual_seed(seed)], 0.01).tables[0]


def trained_row(table: EmbeddingTable, row: int, columns: tuple[int, ...]) -> torch.Tensor:
    """One trained row, folded, with zeros where it has no column."""
    values = table.weight_Rk[row]
    if table.core_kD is not None:
        values = sum(values[k] * table.core_kD[k] for k in range(len(values)))
    return torch.stack([v if c in columns else torch.zeros(()) for c, v in enumerate(values)])


def reference_row(table: EmbeddingTable, row: int) -> torch.Tensor:
    """One row by the plan's words: fall back, fold, mask, put together, project."""
    row, first = row if row < table.plan.kept_rows else 0, 0
    for block in table.plan.blocks:
        if block.start <= row < block.stop:
            break
        first += sum(part.rows for part in block.parts)
    local, form = row - block.start, block.form
    if isinstance(form, QR):
        remainder, quotient = block.parts
        left = trained_row(table, first + local % form.remainders, remainder.columns)
        right = trained_row(table, first + form.remainders + local // form.remainders, quotient.columns)
        values = left * right if form.combine == "multiply" else left + right
    else:
        local = local % form.buckets if isinstance(form, Hash) else local
        values = trained_row(table, first + local, block.columns)
    return values if table.lift_dD is None else values @ table.lift_dD


@settings(max_examples=60, deadline=None)
@given(table_plans(), st.integers(0, 2**31))
def test_lookup_equals_the_plain_reference(plan, seed):
    table = alone(plan, WIDTH, seed)
    ids = torch.arange(plan.rows)
    expected = torch.stack([reference_row(table, i) for i in range(plan.rows)])
    torch.testing.assert_close(table(ids), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(table.folded(), table.rows(ids[: plan.kept_rows]), rtol=0, atol=0)


def test_kept_rows_start_from_the_values_of_the_full_table():
    full = EmbeddingLayer(LAYOUT, full_plan(LAYOUT.table_rows, WIDTH), seed=3, init_std=0.01).tables["item_id"]
    small_plan = TablePlan(
        rows=7, blocks=(Block(start=0, stop=2, columns=(0, 1)), Block(start=2, stop=5, columns=(0,)))
    )
    plan = Plan(width=WIDTH, tables={**full_plan(LAYOUT.table_rows, WIDTH).tables, "item_id": small_plan})
    small = EmbeddingLayer(LAYOUT, plan, seed=3, init_std=0.01).tables["item_id"]
    assert torch.equal(small.weight_Rk, full.weight_Rk[:5])


def test_masked_columns_and_dropped_rows_get_no_gradient():
    plan = TablePlan(rows=9, blocks=(Block(start=0, stop=2, columns=(0, 2)), Block(start=2, stop=4, columns=())))
    table = alone(plan, 3, 0)
    table(torch.arange(9)).sum().backward()
    expected = torch.tensor([[6.0, 0.0, 6.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(table.group.weight_Rk.grad.to_dense(), expected)  # row 0 also answers for the five dropped rows


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize(("num_ids", "remainders"), [(20, 4), (23, 5), (7, 2)])
def test_every_id_has_a_quotient_and_remainder_of_its_own(num_ids, remainders, combine):
    block = Block(start=0, stop=num_ids, columns=(0, 1), form=QR(remainders=remainders, combine=combine))
    reads = RowMap([block])(torch.arange(num_ids))
    pairs = set(zip(reads.first_n.tolist(), reads.second_m.tolist(), strict=True))
    assert len(pairs) == num_ids
    assert {row for pair in pairs for row in pair} == set(range(sum(part.rows for part in block.parts)))


def test_shared_rows_get_the_gradient_of_all_their_ids_and_no_other_row_any():
    columns = (0, 1)
    plan = TablePlan(
        rows=40,
        blocks=(
            Block(start=0, stop=2, columns=columns),
            Block(start=2, stop=20, columns=columns, form=Hash(buckets=3)),
            Block(start=20, stop=40, columns=columns, form=QR(remainders=4, combine="add")),
        ),
    )
    table = alone(plan, 2, 0)
    table(torch.tensor([1, 2, 5, 6, 20, 24])).sum().backward()
    gradient = table.group.weight_Rk.grad
    assert gradient.is_sparse
    touched = dict(zip(gradient._indices()[0].tolist(), gradient._values()[:, 0].tolist(), strict=True))
    # Rows of its own 0-1, buckets 2-4, remainders 5-8, quotients 9-13.
    assert touched == {1: 1.0, 2: 2.0, 3: 1.0, 5: 2.0, 9: 1.0, 10: 1.0}


@pytest.mark.parametrize("form", [Hash(buckets=400), *(QR(remainders=60, combine=how) for how in COMBINES)])
def test_shared_rows_start_with_the_plain_tables_deviation(form):
    plain = full_plan({"t": 3600}, 16).tables["t"]
    shared = dataclasses.replace(plain, blocks=(dataclasses.replace(plain.blocks[0], form=form),))
    deviation = alone(plain, 16, 1).folded().std().item()
    assert alone(shared, 16, 1).folded().std().item() == pytest.approx(deviation, rel=0.1)


def test_rounding_passes_the_gradient_on_as_it_is():
    columns = (0, 2, 3)
    plan = TablePlan(
        rows=9, blocks=(Block(start=0, stop=6, columns=columns, bits=2), Block(start=6, stop=9, columns=()))
    )
    plain, rounding = alone(plan, 4, 0), alone(plan, 4, 0)
    rounding.group.rounds = True
    ids, weights = torch.tensor([1, 1, 4, 8]), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for table in (plain, rounding):
        (table(ids) * weights).sum().backward()
    assert not torch.equal(rounding(ids), plain(ids))
    torch.testing.assert_close(rounding.group.weight_Rk.grad.to_dense(), plain.group.weight_Rk.grad.to_dense())


def test_codebooks_are_not_trained_rounded():
    layout = Layout(categorical=("a",), numeric=(), sequences=(), table_of={"a": "a"}, table_rows={"a": 9})
    block = Block(start=0, stop=9, columns=(0, 1), form=Codebook(groups=1, centroids=4))
    layer = EmbeddingLayer(layout, Plan(width=2, tables={"a": TablePlan(rows=9, blocks=(block,))}), 0, 0.01)
    with pytest.raises(NarrowcastError, match="table 'a' has a codebook, which is fitted after training"):
        layer.round_rows(True)


def test_inner_width_starts_with_the_plain_tables_variance_and_moves_every_row():
    plain = full_plan({"t": 4000}, 16).tables["t"]
    inner = full_plan({"t": 4000}, 16, inner_width=64).tables["t"]
    tables = [alone(p, 16, 1) for p in (plain, inner)]
    stds = [table.folded().std().item() for table in tables]
    assert stds[1] == pytest.approx(stds[0], rel=0.05)
    factored = tables[1]
    before = factored.folded().clone()
    factored(torch.tensor([3, 5])).sum().backward()
    w2, w1 = factored.weight_Rk.detach().clone(), factored.core_kD.detach().clone()
    gradient = torch.zeros(4000, 16)
    gradient[[3, 5]] = 1.0
    rate = 1e-3
    torch.optim.SGD(factored.group.parameters(), lr=rate).step()
    update = -rate * (gradient @ w1.T @ w1 + w2 @ w2.T @ gradient)  # to first order in the rate
    torch.testing.assert_close(factored.folded() - before, update, rtol=1e-2, atol=2e-6)
    assert (update.abs().sum(1) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 1000))
def test_fused_lookups_equal_one_table_at_a_time(data, seed):
    """Forms of rows differ between the tables; so do the groups."""
    tables = {name: data.draw(table_plans(rows)) for name, rows in LAYOUT.table_rows.items()}
    layer = EmbeddingLayer(LAYOUT, Plan(width=WIDTH, tables=tables), seed, init_std=0.01)
    rng = np.random.default_rng(seed)
    num_rows, length = rng.integers(0, 6), rng.integers(1, 5)
    ids_BF = torch.from_numpy(rng.integers(0, [9, 3, 7], (num_rows, 3)))
    sequences = {"history": torch.from_numpy(rng.integers(-1, 7, (num_rows, length)))}
    fused, single = layer(ids_BF, sequences), look_up(LAYOUT, layer.tables, ids_BF, sequences)
    torch.testing.assert_close(fused.categorical_BFD, single.categorical_BFD)
    torch.testing.assert_close(fused.rows_BLD["history"], single.rows_BLD["history"])
    assert torch.equal(fused.valid_BL["history"], sequences["history"] >= 0)
    assert len(layer.groups) == len({form_of(plan, WIDTH) for plan in tables.values()})


def test_padding_is_zeros_and_touches_no_row():
    layer = EmbeddingLayer(LAYOUT, full_plan(LAYOUT.table_rows, WIDTH), seed=0, init_std=0.01)
    history_BL = torch.tensor([[3, PAD, PAD], [PAD, PAD, PAD]])
    found = layer(torch.ones(2, 3, dtype=torch.int64), {"history": history_BL})
    assert (found.rows_BLD["history"][history_BL == PAD] == 0).all()
    found.rows_BLD["history"].sum().backward()
    assert layer.tables["item_id"].group.weight_Rk.grad.to_dense().abs().sum(1).count_nonzero() == 1
    touched = layer.tables["item_id"].group.weight_Rk.grad._indices()[0]
    starts = {name: table.start for name, table in layer.tables.items()}
    assert set(touched.tolist()) == {*(start + 1 for start in starts.values()), starts["item_id"] + 3}


def test_sequences_alone_are_looked_up_alike():
    layout = Layout(categorical=(), numeric=(), sequences=("tags",), table_of={"tags": "tags"}, table_rows={"tags": 4})
    layer = EmbeddingLayer(layout, full_plan(layout.table_rows, 2), seed=0, init_std=0.01)
    ids_BF, sequences = torch.zeros(2, 0, dtype=torch.int64), {"tags": torch.tensor([[1, 2], [3, PAD]])}
    fused, single = layer(ids_BF, sequences), look_up(layout, layer.tables, ids_BF, sequences)
    assert fused.categorical_BFD.shape == single.categorical_BFD.shape == (2, 0, 2)
    assert torch.equal(fused.rows_BLD["tags"], single.rows_BLD["tags"])


@pytest.mark.parametrize("name", ["items", "type", "forward", "training", "half"])
def test_any_field_name_may_be_a_table(name):
    layout = Layout(categorical=(name,), numeric=(), sequences=(), table_of={name: name}, table_rows={name: 3})
    layer = EmbeddingLayer(layout, full_plan(layout.table_rows, 2), seed=0, init_std=0.01)
    assert layer(torch.tensor([[2]]), {}).categorical_BFD.shape == (1, 1, 2)
    assert list(layer.tables) == [name]


def test_a_plan_of_other_data_is_refused():
    with pytest.raises(NarrowcastError, match="table 'user_id' is for 5 rows, the data has 9"):
        EmbeddingLayer(LAYOUT, full_plan({**LAYOUT.table_rows, "user_id": 5}, WIDTH), seed=0, init_std=0.01)
    with pytest.raises(NarrowcastError, match="no table 'user_id'"):
        EmbeddingLayer(LAYOUT, full_plan({"user": 9, "type": 3, "item_id": 7}, WIDTH), seed=0, init_std=0.01)
