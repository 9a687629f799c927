"""Stored tables: exact bytes for any plan, and rows that are the trained table's and those of a plain reading."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from narrowcast.components.compact.pack import data_bytes
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.train.forms import COMBINES, QR, Codebook, Form, Hash
from narrowcast.components.train.plan import BITS, Block, Plan, TablePlan
from narrowcast.components.train.tables import EmbeddingTable, TableGroup, round_as_stored


@st.composite
def forms(draw, num_ids: int, columns: tuple[int, ...], bits: int) -> Form | None:
    """Any form that the block may have."""
    groups = draw(st.sampled_from([g for g in range(1, len(columns) + 1) if len(columns) % g == 0] or [1]))
    found = [
        Hash(buckets=draw(st.integers(1, num_ids))),
        QR(remainders=draw(st.integers(1, num_ids)), combine=draw(st.sampled_from(COMBINES))),
        Codebook(groups=groups, centroids=draw(st.integers(2, 20))),
    ]
    possible = [form for form in found if columns and not form.fault(num_ids, columns, bits)]
    return draw(st.sampled_from([None, *possible]))


@st.composite
def tables(draw, bits: tuple[int, ...] = BITS, multiplied: bool = True) -> tuple[TablePlan, int]:
    """Any plan of one table, and the model's width; with a projection or an inner width only where it may be
    `multiplied` by a matrix."""
    width = draw(st.integers(1, 9))
    projection = draw(st.none() | st.integers(1, 5)) if multiplied else None
    inner_width = draw(st.none() | st.integers(1, 12)) if multiplied and not projection else None
    blocks, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        stop = start + draw(st.integers(1, 25))
        columns = tuple(sorted(draw(st.sets(st.integers(0, (projection or width) - 1)))))
        stored = draw(st.sampled_from(bits))
        form = draw(forms(stop - start, columns, stored))
        blocks.append(Block(start=start, stop=stop, columns=columns, bits=stored, form=form))
        start = stop
    rows = start + draw(st.integers(0, 5))
    table = TablePlan(rows=rows, blocks=tuple(blocks), projection=projection, inner_width=inner_width)
    Plan(width=width, tables={"t": table})
    return table, width


def trained(plan: TablePlan, width: int) -> EmbeddingTable:
    return TableGroup([plan], width, [torch.Generator().manual_seed(1)], 0.01).tables[0]


def stored_rows(tensors: dict[str, torch.Tensor], name: str, bits: int, width: int) -> np.ndarray:
    """A part's rows by the words of docs/architecture.md."""
    values = tensors[f"{name}values"].numpy()
    if bits >= 16:
        return values.astype(np.float32)
    offset, per_byte = {8: 128, 4: 8, 2: 1.5}[bits], 8 // bits
    scale = tensors[f"{name}scale"].numpy()
    if bits < 8:
        scale = np.array([(1 + c % 8 / 8) * 2.0 ** (c // 8 - 24) if c else 0 for c in scale.astype(int)])
    integers = [
        [int(row[c // per_byte]) >> (c % per_byte * bits) & (2**bits - 1) for c in range(width)] for row in values
    ]
    return (np.array(integers).reshape(len(values), width) - offset).astype(np.float32) * scale.astype(np.float32)[
        :, None
    ]


def plain_row(plan: TablePlan, width: int, tensors: dict[str, torch.Tensor], row: int) -> np.ndarray:
    """One row by the words of the plan and of docs/architecture.md."""
    row = row if row < plan.kept_rows else 0
    number, block = next((i, b) for i, b in enumerate(plan.blocks) if b.start <= row < b.stop)
    local, columns, found = row - block.start, list(block.columns), np.zeros(plan.projection or width, np.float32)

    def part(name: str, which: int, num_columns: int) -> np.ndarray:
        return stored_rows(tensors, f"{number}.{name}", block.bits, num_columns)[which]

    if columns and isinstance(block.form, QR):
        first, second = divmod(local, block.form.remainders)[::-1]
        half = -(-len(columns) // 2) if block.form.combine == "concatenate" else len(columns)
        rest = len(columns) - half or len(columns)
        remainder, quotient = part("remainder.", first, half), part("quotient.", second, rest)
        if block.form.combine == "concatenate":
            found[columns] = np.concatenate([remainder, quotient])
        else:
            found[columns] = remainder * quotient if block.form.combine == "multiply" else remainder + quotient
    elif columns and isinstance(block.form, Codebook):
        codes = tensors[f"{number}.codes"][local].tolist()
        if block.form.centroids <= 16:
            codes = [code for byte in codes for code in (byte & 15, byte >> 4)]
        centroids = tensors[f"{number}.centroids"].float().numpy()
        found[columns] = np.concatenate([centroids[g, codes[g]] for g in range(block.form.groups)])
    elif columns:
        found[columns] = part("", local % block.form.buckets if isinstance(block.form, Hash) else local, len(columns))
    return found if plan.projection is None else found @ tensors["lift"].numpy()


@settings(deadline=None, max_examples=100)
@given(tables())
def test_tensors_and_file_weigh_what_the_plan_says(tmp_path_factory, drawn):
    plan, width = drawn
    tensors = table_tensors(trained(plan, width))
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == plan.stored_bytes(width)
    path = tmp_path_factory.mktemp("tables") / "t.safetensors"
    save_file(tensors, path)
    assert data_bytes(path) == plan.stored_bytes(width)


@settings(deadline=None, max_examples=150)
@given(tables())
def test_lookups_equal_a_plain_reading_of_the_file(drawn):
    plan, width = drawn
    tensors = table_tensors(trained(plan, width))
    packed = PackedTable(plan, width, tensors)
    expected = np.stack([plain_row(plan, width, tensors, row) for row in range(plan.rows + 3)])
    ids = torch.arange(plan.rows + 3).repeat(2).view(2, -1)
    found = packed(ids)
    assert found.dtype == torch.float32
    exact = {"rtol": 0, "atol": 1e-7} if plan.projection else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, torch.tensor(np.stack([expected] * 2)), **exact)


@settings(deadline=None, max_examples=100)
@given(tables())
def test_lookups_equal_the_trained_table_with_its_values_rounded(drawn):
    plan, width = drawn
    table = trained(plan, width)
    packed = PackedTable(plan, width, table_tensors(table))
    round_as_stored(table.group)
    ids = torch.arange(plan.rows + 3).repeat(2).view(2, -1)
    torch.testing.assert_close(packed(ids), table(ids), rtol=0, atol=1e-7 if plan.projection else 1e-9)


@settings(deadline=None, max_examples=100)
@given(tables())
def test_what_rounds_in_training_is_what_is_stored(drawn):
    """Whichever ids are looked up together; where there are codebooks, rows are stored otherwise."""
    plan, width = drawn
    table = trained(plan, width)
    table.group.rounds = True
    packed = PackedTable(plan, width, table_tensors(table))
    is_fitted = [isinstance(block.form, Codebook) for block in plan.blocks]
    ids = torch.tensor(
        [
            i
            for block, fitted in zip(plan.blocks, is_fitted, strict=True)
            if not fitted
            for i in range(block.start, block.stop)
        ]
    ).long()
    for some in (ids, ids[1::3], ids[:1]):
        torch.testing.assert_close(packed(some), table(some), rtol=0, atol=1e-7 if plan.projection else 0)


@settings(deadline=None, max_examples=60)
@given(tables(bits=(32,), multiplied=False))
def test_float32_that_is_not_multiplied_by_a_matrix_is_bit_equal(drawn):
    plan, width = drawn
    assume(not plan.is_lossy)
    table = trained(plan, width)
    ids = torch.arange(plan.rows + 3)
    assert torch.equal(PackedTable(plan, width, table_tensors(table))(ids), table(ids))
