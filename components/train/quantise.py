"""How a row of a table is stored: symmetric signed integers of 8 or 4 bits with one float16 scale a row, or float32.

It stands beside the plan because search judges a plan on the values that will be served, and packing writes them.
Shape letters: R rows, w columns, b stored bytes of a row's values.
"""

import torch
from torch import Tensor, nn

from narrowcast.components.train.tables import EmbeddingTable, TableGroup
from narrowcast.errors import NarrowcastError

LEVELS = {8: 127, 4: 7}
"""Largest |q| by bits."""
OFFSET = {8: 128, 4: 8}
"""q is stored unsigned, as q + offset."""
FLOAT16 = torch.finfo(torch.float16)
SMALLEST_SCALE = FLOAT16.smallest_normal * FLOAT16.eps


def quantise(rows_Rw: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Float rows to `(values_Rb uint8, scale_R float16)`.

    A row's scale is max |x| / 127 (or 7) rounded to float16, and the integers are chosen for the *rounded* scale, so
    that its rounding error is not added to theirs. A row of zeros has scale 0; a row too small for float16 takes the
    smallest positive scale. |x - scale q| is at most half a scale, plus what float16 cuts off the row's largest value.
    Raises NarrowcastError for values that are not finite or beyond what a float16 scale reaches.
    """
    largest_R = rows_Rw.abs().amax(dim=1)
    scale_R = (largest_R / LEVELS[bits]).to(torch.float16)
    scale_R = torch.where((scale_R == 0) & (largest_R > 0), torch.full_like(scale_R, SMALLEST_SCALE), scale_R)
    if not (bool(rows_Rw.isfinite().all()) and bool(scale_R.isfinite().all())):
        raise NarrowcastError(
            f"an embedding table holds values that {bits} bits with a float16 scale cannot store (NaN, infinite or "
            f"over {FLOAT16.max * LEVELS[bits]:.0f}): train again with a smaller learning rate, or search with bits 32"
        )
    divisor_R1 = torch.where(scale_R == 0, torch.ones_like(scale_R), scale_R).float().unsqueeze(1)
    q_Rw = (rows_Rw / divisor_R1).round().clamp(-LEVELS[bits], LEVELS[bits])
    stored_Rw = (q_Rw + OFFSET[bits]).to(torch.uint8)
    if bits == 4:
        stored_Rw = nn.functional.pad(stored_Rw, (0, stored_Rw.shape[1] % 2))
        stored_Rw = stored_Rw[:, 0::2] | (stored_Rw[:, 1::2] << 4)
    return stored_Rw.contiguous(), scale_R


def dequantise(values_Rb: Tensor, scale_R: Tensor, bits: int, width: int) -> Tensor:
    """The float32 rows (R x `width`) that `quantise` stored."""
    if bits == 4:
        values_Rb = torch.stack([values_Rb & 15, values_Rb >> 4], dim=2).flatten(1)[:, :width]
    return (values_Rb.float() - OFFSET[bits]) * scale_R.float().unsqueeze(1)


@torch.no_grad()
def round_as_stored(group: TableGroup) -> None:
    """Replace trained tables' values, in place, by those that their packed form will give: folded and quantised."""
    group.weight_Rk = nn.Parameter(torch.cat([_as_stored(table) for table in group.tables]))
    group.core_Tkd = None


def _as_stored(table: EmbeddingTable) -> Tensor:
    rows = table.folded()
    for block in table.plan.blocks:
        if block.bits != 32 and block.columns:
            columns = list(block.columns)
            values, scale = quantise(rows[block.start : block.stop][:, columns], block.bits)
            rows[block.start : block.stop, columns] = dequantise(values, scale, block.bits, block.width)
    return rows
