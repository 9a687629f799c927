"""A packed table's lookup in operators that an exported graph can hold: rows stay as they are stored until looked up.

`PackedTable` finds the ids of a block by selecting them, and how many these are depends on their values. Here every
block is read for every id, at its own position or, beyond the block, at the block's edge; the block that the id lies in
is kept.

Shape letters: r rows of a part, b stored bytes of a row, w columns of a part, D the model's width, d the width before a
projection, G groups of a codebook, K its centroids, v columns of a group.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from narrowcast.components.compact.packed_table import stored_blocks, tensor_name
from narrowcast.components.train.forms import QR, Codebook, Hash
from narrowcast.components.train.plan import Block, TablePlan
from narrowcast.components.train.quantise import OFFSET, float_scale
from narrowcast.components.train.storage import kinds


class GraphTable(nn.Module):
    """One stored table, from the tensors that `table_tensors` names; equal to `PackedTable`, value by value."""

    lift_dD: Tensor | None

    def __init__(self, plan: TablePlan, width: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        self.internal = plan.projection or width
        self.blocks = stored_blocks(plan, self.internal, tensors, GraphBlock)
        self.register_buffer("lift_dD", tensors.get("lift"))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (... x D, float32) of `ids` (any shape, int64); an id that is negative or not kept reads row 0."""
        known = torch.where((ids >= 0) & (ids < self.plan.kept_rows), ids, 0)
        rows: Tensor | None = None
        for number, stored in self.blocks.items():
            block = self.plan.blocks[int(number)]
            if len(self.plan.blocks) == 1:
                rows = stored(known)
                break
            inside = ((known >= block.start) & (known < block.stop)).unsqueeze(-1)
            found = stored((known - block.start).clamp(0, block.stop - block.start - 1))
            rows = torch.where(inside, found, 0.0 if rows is None else rows)
        if rows is None:
            rows = torch.zeros(self.internal).expand(*ids.shape, self.internal)
        return rows if self.lift_dD is None else rows @ self.lift_dD


class GraphBlock(nn.Module):
    """One block that has columns; ids count from its first row."""

    def __init__(self, number: int, block: Block, internal: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.form = block.form
        self.parts = nn.ModuleList()
        for part in block.parts:
            stored = {kind: tensors[tensor_name(number, part, kind)] for kind in kinds(block)}
            if isinstance(block.form, Codebook):
                self.parts.append(Codes(stored["codes"], stored["centroids"], block.form))
            else:
                rows = StoredRows(stored["values"], stored.get("scale"), block.bits, len(part.columns))
                self.parts.append(rows)
        self.columns = Columns(block.columns, internal)

    def forward(self, ids: Tensor) -> Tensor:
        """Float32 rows, ... x d."""
        return self.columns(self.rows(ids))

    def rows(self, ids: Tensor) -> Tensor:
        """In the block's own columns."""
        if isinstance(self.form, Hash):
            return self.parts[0](ids % self.form.buckets)
        if isinstance(self.form, QR):
            first = self.parts[0](ids % self.form.remainders)
            second = self.parts[1](torch.div(ids, self.form.remainders, rounding_mode="trunc"))
            if self.form.combine == "concatenate":
                return torch.cat([first, second], dim=-1)
            return first * second if self.form.combine == "multiply" else first + second
        return self.parts[0](ids)


class StoredRows(nn.Module):
    """A stored matrix; `forward` gives rows as float32, by the operations of `dequantise` in its order."""

    values_rb: Tensor
    scale_r1: Tensor | None
    scales: Tensor

    def __init__(self, values_rb: Tensor, scale_r: Tensor | None, bits: int, width: int) -> None:
        super().__init__()
        self.bits = bits
        self.coded = scale_r is not None and scale_r.dtype == torch.uint8
        self.register_buffer("values_rb", values_rb)
        self.register_buffer("scale_r1", None if scale_r is None else scale_r.unsqueeze(1))
        if self.coded:
            self.register_buffer("scales", float_scale(torch.arange(256, dtype=torch.uint8)).unsqueeze(1))
        self.unpacked = Unpacked(bits, width)

    def forward(self, positions: Tensor) -> Tensor:
        """Rows (... x w) at `positions` (any shape, int64, 0 to r - 1)."""
        stored = nn.functional.embedding(positions, self.values_rb)
        if self.scale_r1 is None:
            return stored.float()
        scale = nn.functional.embedding(positions, self.scale_r1)
        scale = nn.functional.embedding(scale.squeeze(-1).int(), self.scales) if self.coded else scale.float()
        return (self.unpacked(stored).float() - OFFSET[self.bits]) * scale


class Codes(nn.Module):
    """A codebook; `forward` gives rows as float32."""

    codes_rb: Tensor
    centroids: Tensor
    starts_G: Tensor

    def __init__(self, codes_rb: Tensor, centroids_GKv: Tensor, form: Codebook) -> None:
        super().__init__()
        self.register_buffer("codes_rb", codes_rb)
        self.register_buffer("centroids", centroids_GKv.flatten(0, 1))
        self.register_buffer("starts_G", torch.arange(form.groups, dtype=torch.int32) * centroids_GKv.shape[1])
        self.unpacked = Unpacked(form.code_bits, form.groups)

    def forward(self, positions: Tensor) -> Tensor:
        """Rows (... x w) at `positions` (any shape, int64, 0 to r - 1)."""
        codes = self.unpacked(nn.functional.embedding(positions, self.codes_rb))
        return nn.functional.embedding(codes.int() + self.starts_G, self.centroids).float().flatten(-2)


class Unpacked(nn.Module):
    """`unpacked_bits` of rows of any shape: ... x b bytes to ... x `width` integers, both uint8."""

    places: Tensor

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.bits = bits
        self.width = width
        self.register_buffer("places", torch.arange(0, 8, bits, dtype=torch.uint8))

    def forward(self, stored: Tensor) -> Tensor:
        if self.bits >= 8:
            return stored
        # Place by place: ONNX Runtime is slow at shifting every byte by all places at once.
        shifted = [torch.bitwise_right_shift(stored, place) & (2**self.bits - 1) for place in self.places.unbind()]
        return torch.stack(shifted, dim=-1).flatten(-2)[..., : self.width]


class Columns(nn.Module):
    """Rows of some `columns` to rows of `width` values, zeros in the others."""

    sources: Tensor

    def __init__(self, columns: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.missing = width - len(columns)
        self.is_prefix = columns == tuple(range(len(columns)))
        if not self.is_prefix:
            place = {column: i for i, column in enumerate(columns)}
            self.register_buffer("sources", torch.tensor([place.get(c, len(columns)) for c in range(width)]))

    def forward(self, rows: Tensor) -> Tensor:
        if self.is_prefix:
            return nn.functional.pad(rows, (0, self.missing)) if self.missing else rows
        return nn.functional.pad(rows, (0, 1)).index_select(-1, self.sources)
