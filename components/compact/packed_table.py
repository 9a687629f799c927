"""An embedding table as it is stored and served: only the rows that are looked up are ever made float32.

Shape letters: R rows of a block, w its columns, b stored bytes of a row's values, D the model's width, d the width
before a projection, n rows looked up.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from narrowcast.components.train.plan import TablePlan
from narrowcast.components.train.quantise import dequantise, quantise, to_float16
from narrowcast.components.train.tables import EmbeddingTable


def table_tensors(table: EmbeddingTable) -> dict[str, Tensor]:
    """What is stored for a trained table, folded, sliced and quantised as its plan says.

    By block i: `i.values` (R x w float32 or float16, or R x b uint8), `i.scale` (R; float16 for 8 bits, uint8 for 4 and
    2), `i.columns` (w uint8) where the columns are no prefix; nothing for a block without columns. `lift` (d x D
    float32) with a projection.
    """
    rows = table.folded()
    tensors = {}
    for i, block in enumerate(table.plan.blocks):
        if not block.columns:
            continue
        values = rows[block.start : block.stop][:, list(block.columns)].contiguous()
        if block.bits == 32:
            tensors[f"{i}.values"] = values
        elif block.bits == 16:
            tensors[f"{i}.values"] = to_float16(values)
        else:
            tensors[f"{i}.values"], tensors[f"{i}.scale"] = quantise(values, block.bits)
        if not block.is_prefix:
            tensors[f"{i}.columns"] = torch.tensor(block.columns, dtype=torch.uint8)
    if table.lift_dD is not None:
        tensors["lift"] = table.lift_dD.detach().contiguous()
    return tensors


class PackedBlock(nn.Module):
    """The stored rows of one block that has columns."""

    values: Tensor
    scale_R: Tensor | None
    columns: Tensor | None

    def __init__(self, bits: int, columns: list[int], internal: int, values: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.bits = bits
        self.width = len(columns)
        self.internal = internal
        self.register_buffer("values", values)
        self.register_buffer("scale_R", scale)
        self.register_buffer("columns", None if self.width == internal else torch.tensor(columns))

    def forward(self, positions: Tensor) -> Tensor:
        """Float32 rows (n x internal width) at `positions` (n, int64, counted from the block's first row)."""
        stored = nn.functional.embedding(positions, self.values)
        rows = (
            stored.float()
            if self.scale_R is None
            else dequantise(stored, self.scale_R[positions], self.bits, self.width)
        )
        if self.columns is None:
            return rows
        return rows.new_zeros(len(positions), self.internal).index_copy_(1, self.columns, rows)


class PackedTable(nn.Module):
    """One stored table; `forward` gives the rows that the trained table would, from `tensors` of `table_tensors`."""

    lift_dD: Tensor | None

    def __init__(self, plan: TablePlan, width: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        self.internal = plan.projection or width
        self.blocks = nn.ModuleDict()
        for i, block in enumerate(plan.blocks):
            if block.columns:
                columns = tensors[f"{i}.columns"].tolist() if f"{i}.columns" in tensors else list(range(block.width))
                values, scale = tensors[f"{i}.values"], tensors.get(f"{i}.scale")
                self.blocks[str(i)] = PackedBlock(block.bits, columns, self.internal, values, scale)
        self.register_buffer("lift_dD", tensors.get("lift"))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (... x D, float32) of `ids` (any shape, int64, all >= 0); an id beyond the kept rows reads row 0."""
        flat = torch.where(ids < self.plan.kept_rows, ids, 0).flatten()
        rows = self._rows(flat).view(*ids.shape, self.internal)
        return rows if self.lift_dD is None else rows @ self.lift_dD

    def _rows(self, ids: Tensor) -> Tensor:
        if len(self.plan.blocks) == 1 and self.blocks:
            return self.blocks["0"](ids)
        rows = torch.zeros(len(ids), self.internal)
        for i, packed in self.blocks.items():
            block = self.plan.blocks[int(i)]
            here = torch.nonzero((ids >= block.start) & (ids < block.stop)).squeeze(1)
            rows[here] = packed(ids[here] - block.start)
        return rows
