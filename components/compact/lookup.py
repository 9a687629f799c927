"""The lookup of a packed model: the rows of every categorical field and sequence of a batch, from all tables at once.

Shape letters: B rows, F categorical fields, L sequence length, D width, N blocks of all tables.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from narrowcast.components.compact.gather import BLOCK, LANES, LINE, PREFIX, Stored, gather
from narrowcast.components.compact.packed_table import PackedTable
from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.embedding import PREFIX as NAME
from narrowcast.components.train.embedding import padded
from narrowcast.components.train.forms import Hash
from narrowcast.components.train.plan import Plan, TablePlan
from narrowcast.components.train.quantise import OFFSET, float_scale
from narrowcast.components.train.scorer import Found

LARGEST = torch.iinfo(torch.int32).max


class PackedLookup(nn.Module):
    """All tables of a packed model, from the tensors stored in its file by "<table>.<key>".

    Tables that the kernel reads are copied into one piece of memory, each row's scale behind its values, so that a
    lookup waits for one place; the tensors are not kept. Other tables are a `PackedTable` each. Rows are the same bit
    for bit as those of `PackedTable`. Calls from several threads at a time are safe.
    """

    def __init__(self, layout: Layout, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layout = layout
        self.width = plan.width
        plans = {name: plan.table(name) for name in layout.table_rows}
        own = {name: tensors_of(name, tensors) for name in plans}
        gathered = [name for name in plans if is_gathered(plans[name])]
        self._index = {name: i for i, name in enumerate(gathered)}
        self._table_F = self._indices(layout.categorical)
        self._stored = store([plans[name] for name in gathered], [own[name] for name in gathered], plan.width)
        self.others = nn.ModuleDict(
            {NAME + name: PackedTable(plans[name], plan.width, own[name]) for name in plans if name not in gathered}
        )
        self(torch.zeros(1, len(layout.categorical), dtype=torch.int32), {})  # compiles the kernel

    def forward(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        """What `ids_BF` (B x F, int, all >= 0) and `sequences` (int, by field, each B x L, or 1 x L for all rows) look
        up. An id beyond a table's kept rows reads row 0; padding is never looked up."""
        rows_BFD = self._gathered(ids_BF, self._table_F)
        for i in np.flatnonzero(self._table_F < 0):
            rows_BFD[:, i] = self._other(self.layout.categorical[i])(ids_BF[:, i].long())
        rows_BLD, valid_BL = {}, {}
        for field, ids_BL in sequences.items():
            valid_BL[field] = ids_BL >= 0
            if self.layout.table_of[field] in self._index:
                rows_BLD[field] = self._gathered(ids_BL, self._indices([field]))
            else:
                rows_BLD[field] = padded(self._other(field)(ids_BL[valid_BL[field]].long()), valid_BL[field])
        return Found(rows_BFD, rows_BLD, valid_BL)

    @property
    def held_bytes(self) -> int:
        """Bytes of all tables in memory."""
        others = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
        return len(self._stored.memory) + others

    def _other(self, field: str) -> nn.Module:
        return self.others[NAME + self.layout.table_of[field]]

    def _indices(self, fields: Sequence[str]) -> NDArray[np.int64]:
        """The kernel's number of each field's table, -1 for tables that it does not read."""
        return np.array([self._index.get(self.layout.table_of[field], -1) for field in fields], np.int64)

    def _gathered(self, ids: Tensor, tables: NDArray[np.int64]) -> Tensor:
        """Rows (... x D) of ids of any shape whose last dimension takes turns through `tables`; where the kernel does
        not read a table they are left to be filled."""
        rows = torch.empty(*ids.shape, self.width)
        if (tables >= 0).any():
            narrow = ids if ids.dtype == torch.int32 else ids.clamp(max=LARGEST).int()
            gather(self._stored, narrow.flatten().contiguous(), tables, rows.view(-1, self.width))
        return rows


def tensors_of(table: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one table by their keys in it."""
    return {key.removeprefix(f"{table}."): value for key, value in tensors.items() if key.startswith(f"{table}.")}


def is_gathered(table: TablePlan) -> bool:
    """Whether the kernel reads a table: rows of their own or hashed, of any bits and columns, and no projection."""
    return table.projection is None and all(isinstance(block.form, Hash | None) for block in table.blocks)


def store(plans: Sequence[TablePlan], tensors: Sequence[Mapping[str, Tensor]], width: int) -> Stored:
    """Tables of the model's `width` in one piece of memory, from the tensors of each. A block begins a cache line."""
    blocks = [block for plan in plans for block in plan.blocks]
    blocks_N = np.zeros(len(blocks), BLOCK)
    columns: list[int] = []
    place = 0
    for described, block in zip(blocks_N, blocks, strict=True):
        (part,) = block.parts
        described["start"] = block.start
        described["buckets"] = part.rows if block.form else 0
        described["place"] = place
        described["row_bytes"] = block.row_bytes()
        described["bits"] = block.bits
        described["offset"] = OFFSET.get(block.bits, 0)
        described["width"] = block.width
        described["columns"] = PREFIX if block.is_prefix else len(columns)
        columns += () if block.is_prefix else block.columns
        place += -(-part.rows * block.row_bytes() // LINE) * LINE
    memory = aligned(place + 4 * LANES)
    keys = [(own, str(i)) for plan, own in zip(plans, tensors, strict=True) for i in range(len(plan.blocks))]
    for described, block, (own, i) in zip(blocks_N, blocks, keys, strict=True):
        if block.columns:
            fill(memory[described["place"] :], own[f"{i}.values"], own.get(f"{i}.scale"))
    return Stored(
        first_T=np.cumsum([0, *(len(plan.blocks) for plan in plans)], dtype=np.int64),
        kept_T=np.array([plan.kept_rows for plan in plans], np.int64),
        blocks_N=blocks_N,
        columns=np.array(columns, np.int64),
        scales=float_scale(torch.arange(256, dtype=torch.uint8)).numpy(),
        memory=memory,
        equal_bits=alike(plans, width),
    )


def alike(plans: Sequence[TablePlan], width: int) -> int:
    """The bits of all rows, where each table is one block of rows of their own with all `width` values, in eights; for
    these the kernel has less to ask. 0 else."""
    blocks = [block for plan in plans for block in plan.blocks]
    bits = {block.bits for block in blocks}
    are_whole = all(block.form is None and block.columns == tuple(range(width)) for block in blocks)
    are_alike = are_whole and len(blocks) == len(plans) and len(bits) == 1 and width % LANES == 0
    return bits.pop() if are_alike else 0


def fill(memory: NDArray[np.uint8], values: Tensor, scale_R: Tensor | None) -> None:
    """Put rows at the beginning of `memory`, each followed by its scale."""
    parts = [values, scale_R.unsqueeze(1)] if scale_R is not None else [values]
    stored = [part.contiguous().view(torch.uint8).numpy() for part in parts]
    row_bytes = sum(part.shape[1] for part in stored)
    np.concatenate(stored, axis=1, out=memory[: len(values) * row_bytes].reshape(len(values), row_bytes))


def aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Memory that begins a cache line. NumPy asks the system for huge pages, so random reads miss fewer of them."""
    spare = np.empty(num_bytes + LINE, np.uint8)
    first = -spare.ctypes.data % LINE
    return spare[first : first + num_bytes]
