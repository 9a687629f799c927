"""An embedding table as it is stored and served: only the rows that are looked up are ever made float32.

Shape letters: R rows of a part, w its columns, b stored bytes of a row's values, D the model's width, d the width
before a projection, n rows looked up.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from narrowcast.components.train.forms import Part
from narrowcast.components.train.plan import Block, TablePlan
from narrowcast.components.train.sharing import RowMap, combined
from narrowcast.components.train.storage import kinds, part_rows, part_tensors, rows_of
from narrowcast.components.train.tables import EmbeddingTable


def table_tensors(table: EmbeddingTable) -> dict[str, Tensor]:
    """What is stored for a trained table, folded, sliced and quantised as its plan says.

    By block i: `i.values` (R x w float32 or float16, or R x b uint8), `i.scale` (R; float16 for 8 bits, uint8 for 4 and
    2), `i.columns` (w uint8) where the columns are no prefix; nothing for a block without columns. A block of two parts
    has `i.remainder.values` and `i.quotient.values`, each with its scale; a codebook has `i.codes` (R x b uint8) and
    `i.centroids` (groups x centroids x w / groups, float32 or float16). `lift` (d x D float32) with a projection.
    """
    tensors: dict[str, Tensor] = {}
    for number, block, part, _, values_rw in table.parts():
        tensors |= {tensor_name(number, part, kind): value for kind, value in part_tensors(values_rw, block).items()}
        if not block.is_prefix:
            tensors[f"{number}.columns"] = torch.tensor(block.columns, dtype=torch.uint8)
    if table.lift_dD is not None:
        tensors["lift"] = table.lift_dD.detach().contiguous()
    return tensors


def tensor_name(number: int, part: Part, kind: str) -> str:
    """What a part's tensor of a kind (values, scale, codes, centroids) is called, in block `number`."""
    return ".".join(str(word) for word in (number, part.name, kind) if word != "")


class PackedPart(nn.Module):
    """The stored rows of one part that has columns."""

    columns_w: Tensor | None

    def __init__(self, block: Block, part: Part, internal: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.block = block
        self.width = len(part.columns)
        self.internal = internal
        self.kinds = tuple(tensors)
        for kind, value in tensors.items():
            self.register_buffer(kind, value)
        self.register_buffer("columns_w", None if self.width == internal else torch.tensor(part.columns))

    def forward(self, positions_n: Tensor) -> Tensor:
        """Float32 rows (n x internal width) at `positions_n` (int64, counted from the part's first row)."""
        stored = {kind: self.get_buffer(kind) for kind in self.kinds}
        rows_nw = part_rows(rows_of(stored, positions_n), self.block, self.width)
        if self.columns_w is None:
            return rows_nw
        return rows_nw.new_zeros(len(positions_n), self.internal).index_copy_(1, self.columns_w, rows_nw)


class PackedBlock(nn.Module):
    """One block that has columns; ids count from its first row."""

    def __init__(self, number: int, block: Block, internal: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        for part in block.parts:
            stored = {kind: tensors[tensor_name(number, part, kind)] for kind in kinds(block)}
            self.parts.append(PackedPart(block, part, internal, stored))
        self.row_map = RowMap([block]) if block.is_shared else None
        self.first_rows = block.parts[0].rows

    def forward(self, ids_n: Tensor) -> Tensor:
        """Float32 rows, n x internal width."""
        if self.row_map is None:
            return self.parts[0](ids_n)
        reads = self.row_map(ids_n)
        first_nd = self.parts[0](reads.first_n)
        if len(self.parts) == 1:
            return first_nd
        return combined(reads, first_nd, self.parts[1](reads.second_m - self.first_rows))


class PackedTable(nn.Module):
    """One stored table; `forward` gives the rows that the trained table would, from `tensors` of `table_tensors`."""

    lift_dD: Tensor | None

    def __init__(self, plan: TablePlan, width: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        self.internal = plan.projection or width
        self.blocks = stored_blocks(plan, self.internal, tensors, PackedBlock)
        self.register_buffer("lift_dD", tensors.get("lift"))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (... x D, float32) of `ids` (any shape, int64, all >= 0); an id beyond the kept rows reads row 0."""
        flat = torch.where(ids < self.plan.kept_rows, ids, 0).flatten()
        rows = self._rows(flat).view(*ids.shape, self.internal)
        return rows if self.lift_dD is None else rows @ self.lift_dD

    def _rows(self, ids_n: Tensor) -> Tensor:
        if len(self.plan.blocks) == 1 and self.blocks:
            return self.blocks["0"](ids_n)
        rows_nd = torch.zeros(len(ids_n), self.internal)
        for number, packed in self.blocks.items():
            block = self.plan.blocks[int(number)]
            here = torch.nonzero((ids_n >= block.start) & (ids_n < block.stop)).squeeze(1)
            rows_nd[here] = packed(ids_n[here] - block.start)
        return rows_nd


def stored_blocks(
    plan: TablePlan,
    internal: int,
    tensors: Mapping[str, Tensor],
    read: Callable[[int, Block, int, Mapping[str, Tensor]], nn.Module],
) -> nn.ModuleDict:
    """What `read` makes of every block that has columns, by the block's number; `internal` is the rows' full width."""
    return nn.ModuleDict(
        {str(i): read(i, block, internal, tensors) for i, block in enumerate(plan.blocks) if block.columns}
    )
