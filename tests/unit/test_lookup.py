"""The packed lookup gives the rows of the plain stored tables bit for bit: any plan, ids, widths and bits."""

import os
import signal
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.compact import gather
from narrowcast.components.compact.lookup import PackedLookup, tensors_of
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.data.encoded import PAD, Layout
from narrowcast.components.train.embedding import look_up
from narrowcast.components.train.forms import QR, Codebook, Hash
from narrowcast.components.train.plan import BITS, Block, Plan, TablePlan
from narrowcast.components.train.tables import TableGroup


@st.composite
def table_plans(draw, width: int) -> TablePlan:
    """Any plan of one table: blocks of any bits, columns and forms, with or without a projection."""
    internal = draw(st.sampled_from((None, None, None, 3)))
    blocks, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        num_ids = draw(st.integers(2, 40))
        kept = draw(st.integers(0, internal or width))
        columns = range(kept) if draw(st.booleans()) else draw(st.sets(st.integers(0, (internal or width) - 1)))
        columns, bits = tuple(sorted(columns)), draw(st.sampled_from(BITS))
        form = draw(
            st.sampled_from((None, None, None, Hash(buckets=2), QR(remainders=3), Codebook(groups=1, centroids=2)))
        )
        if form and (not columns or form.fault(num_ids, columns, bits)):
            form = None
        blocks.append(Block(start=start, stop=start + num_ids, columns=columns, bits=bits, form=form))
        start += num_ids
    return TablePlan(rows=start + draw(st.integers(0, 5)), blocks=tuple(blocks), projection=internal)


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


def equal_tables(width: int, bits: int, num_tables: int = 3, rows: int = 50) -> tuple[Layout, Plan]:
    """A field a table, of one block of whole rows each."""
    names = tuple(f"f{i}" for i in range(num_tables))
    layout = Layout(
        categorical=names,
        numeric=(),
        sequences=(),
        table_of={n: n for n in names},
        table_rows=dict.fromkeys(names, rows),
    )
    block = Block(start=0, stop=rows - 5, columns=tuple(range(width)), bits=bits)
    return layout, Plan(width=width, tables={name: TablePlan(rows=rows, blocks=(block,)) for name in names})


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.usefixtures("three_threads")
def test_many_rows_of_equal_tables_are_the_plain_tables(width, bits):
    layout, plan = equal_tables(width, bits)
    tensors = stored(layout, plan)
    packed = PackedLookup(layout, plan, tensors)
    ids_BF = torch.randint(0, 60, (gather.SHARED, 3), dtype=torch.int32)  # so that threads share it
    expected = look_up(layout, plain(layout, plan, tensors), ids_BF, {})
    assert same_bits(packed(ids_BF, {}).categorical_BFD, expected.categorical_BFD)


@pytest.mark.usefixtures("three_threads")
def test_calls_from_several_threads_do_not_mix():
    layout, plan = equal_tables(16, 8)
    tensors = stored(layout, plan)
    packed, tables = PackedLookup(layout, plan, tensors), plain(layout, plan, tensors)
    batches = [torch.randint(0, 60, (gather.SHARED, 3), dtype=torch.int32) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids_BF: packed(ids_BF, {}).categorical_BFD, batches * 4))
    for ids_BF, rows_BFD in zip(batches * 4, found, strict=True):
        assert same_bits(rows_BFD, look_up(layout, tables, ids_BF, {}).categorical_BFD)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux" or not gather.parallel, reason="threads are counted in Linux's /proc")
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("num_rows", "started"), [(gather.SHARED // 3, 0), (gather.SHARED, 2)])
def test_many_lookups_are_shared_by_as_many_threads_as_torch_has(num_rows, started):
    layout, plan = equal_tables(16, 8)
    packed = PackedLookup(layout, plan, stored(layout, plan))
    ids_BF = torch.zeros(num_rows, 3, dtype=torch.int32)

    def more_threads() -> int:
        before = num_threads()
        packed(ids_BF, {})
        return num_threads() - before

    with ThreadPoolExecutor(1) as fresh:  # OpenMP keeps a team for each thread that calls it, from the first call on
        assert fresh.submit(more_threads).result() == started
        assert fresh.submit(more_threads).result() == 0


@pytest.mark.usefixtures("three_threads")
def test_one_thread_looks_all_up_where_openmp_has_none(monkeypatch):
    layout, plan = equal_tables(16, 4)
    packed = PackedLookup(layout, plan, stored(layout, plan))
    ids_BF = torch.randint(0, 60, (gather.SHARED, 3), dtype=torch.int32)
    expected = packed(ids_BF, {}).categorical_BFD
    monkeypatch.setattr(gather, "parallel", None)
    assert same_bits(packed(ids_BF, {}).categorical_BFD, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks():
    layout, plan = equal_tables(16, 8)
    packed = PackedLookup(layout, plan, stored(layout, plan))
    ids_BF = torch.randint(0, 60, (gather.SHARED, 3), dtype=torch.int32)
    expected = packed(ids_BF, {}).categorical_BFD.numpy()
    child = os.fork()
    if child == 0:
        is_equal = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process where it waits
            signal.alarm(20)
            is_equal = np.array_equal(packed(ids_BF, {}).categorical_BFD.numpy(), expected)
        finally:
            os._exit(0 if is_equal else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("bits", "times"), [(8, 3.5), (4, 7), (2, 12)])
def test_rows_in_memory_are_as_small_as_stored(bits, times):
    layout, plan = equal_tables(16, bits, rows=10_000)
    packed = PackedLookup(layout, plan, stored(layout, plan))
    assert plan.stored_bytes() <= packed.held_bytes < plan.stored_bytes() + 1000
    assert packed.held_bytes * times < plan.full_bytes()


def test_ids_may_be_a_column_of_a_wider_array():
    """Flattened, it keeps its stride, which the kernel knows nothing of."""
    layout, plan = equal_tables(16, 8, num_tables=1)
    lookup = PackedLookup(layout, plan, stored(layout, plan))
    ids_B1 = torch.arange(40, dtype=torch.int32).view(8, 5)[:, 3:4]
    assert not ids_B1.flatten().is_contiguous()
    assert same_bits(lookup(ids_B1, {}).categorical_BFD, lookup(ids_B1.clone(), {}).categorical_BFD)


def test_an_id_beyond_32_bits_reads_row_0():
    layout, plan = equal_tables(16, 8, num_tables=1)
    packed = PackedLookup(layout, plan, stored(layout, plan))
    found = packed(torch.tensor([[2**32 + 7], [0]]), {}).categorical_BFD
    assert same_bits(found[0], found[1])


def test_a_kernel_that_cannot_be_kept_on_disk_is_compiled_all_the_same(monkeypatch):
    made = gather._kernel

    def kernel_of_no_file(bits: int, width: int) -> types.FunctionType:
        kernel = made(bits, width)
        kernel.__code__ = kernel.__code__.replace(co_filename="/nowhere/gather.py")
        return kernel

    monkeypatch.setattr(gather, "_kernel", kernel_of_no_file)
    monkeypatch.setattr(gather, "compiled", gather.compiled.__wrapped__)
    layout, plan = equal_tables(8, 8, num_tables=1)
    tensors = stored(layout, plan)
    ids_BF = torch.arange(55).unsqueeze(1)
    expected = look_up(layout, plain(layout, plan, tensors), ids_BF, {})
    assert same_bits(PackedLookup(layout, plan, tensors)(ids_BF, {}).categorical_BFD, expected.categorical_BFD)
