"""The packed lookup gives the rows of the plain stored tables bit for bit: any plan, ids, widths and bits."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.compact.lookup import PackedLookup, tensors_of
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.data.encoded import PAD, Layout
from narrowcast.components.train.embedding import look_up
from narrowcast.components.train.plan import BITS, Block, Plan, TablePlan
from narrowcast.components.train.tables import TableGroup


@st.composite
def table_plans(draw, width: int) -> TablePlan:
    projection = draw(st.sampled_from((None, None, None, 3)))
    blocks, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        stop = start + draw(st.integers(2, 40))
        kept = draw(st.integers(0, projection or width))
        columns = set(range(kept)) if draw(st.booleans()) else draw(st.sets(st.integers(0, (projection or width) - 1)))
        blocks.append(Block(start=start, stop=stop, columns=tuple(sorted(columns)), bits=draw(st.sampled_from(BITS))))
        start = stop
    return TablePlan(rows=start + draw(st.integers(0, 5)), blocks=tuple(blocks), projection=projection)


@st.composite
def models(draw) -> tuple[Layout, Plan]:
    """Any layout of a few fields, of which two may share a table, and any plan for it."""
    width = draw(st.integers(1, 40))
    tables = {f"t{i}": draw(table_plans(width)) for i in range(draw(st.integers(1, 4)))}
    names = list(tables)
    categorical = [f"c{i}" for i in range(draw(st.integers(0, 5)))]
    sequences = [f"s{i}" for i in range(draw(st.integers(0 if categorical else 1, 2)))]
    table_of = {field: draw(st.sampled_from(names)) for field in (*categorical, *sequences)}
    used = {name: tables[name] for name in names if name in table_of.values()}
    layout = Layout(
        categorical=tuple(categorical),
        numeric=(),
        sequences=tuple(sequences),
        table_of=table_of,
        table_rows={name: table.rows for name, table in used.items()},
    )
    return layout, Plan(width=width, tables=used)


def stored(layout: Layout, plan: Plan, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of tables with random values, some rows all zeros, some tiny."""
    tensors = {}
    for i, name in enumerate(layout.table_rows):
        table_plan = plan.table(name)
        group = TableGroup([table_plan], plan.width, [torch.Generator().manual_seed(seed + i)], 0.3)
        with torch.no_grad():
            group.weight_Rk[1::5] = 0.0
            group.weight_Rk[2::5] *= 1e-6
        tensors |= {f"{name}.{key}": value for key, value in table_tensors(group.tables[0]).items()}
    return tensors


def plain(layout: Layout, plan: Plan, tensors: dict[str, torch.Tensor]) -> dict[str, PackedTable]:
    return {name: PackedTable(plan.table(name), plan.width, tensors_of(name, tensors)) for name in layout.table_rows}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Zeros of either sign are told apart."""
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_rows_are_the_plain_tables(data):
    layout, plan = data.draw(models())
    num_rows, length = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from((torch.int32, torch.int64)))
    beyond = max(layout.table_rows.values()) + 3
    ids_BF = torch.tensor(rng.integers(0, beyond, (num_rows, len(layout.categorical)))).to(dtype)
    sequences = {
        name: torch.tensor(rng.integers(PAD, beyond, (data.draw(st.sampled_from((1, num_rows))), length))).to(dtype)
        for name in layout.sequences
    }
    tensors = stored(layout, plan)
    found = PackedLookup(layout, plan, tensors)(ids_BF, sequences)
    expected = look_up(layout, plain(layout, plan, tensors), ids_BF, sequences)
    assert found.categorical_BFD.shape == (num_rows, len(layout.categorical), plan.width)
    if num_rows and layout.categorical:
        assert same_bits(found.categorical_BFD, expected.categorical_BFD)
    assert list(found.rows_BLD) == list(layout.sequences)
    for name in layout.sequences:
        assert same_bits(found.rows_BLD[name], expected.rows_BLD[name])
        assert torch.equal(found.valid_BL[name], expected.valid_BL[name])
