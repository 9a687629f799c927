"""What is stored for a part of a block, and the rows that it gives back.

Shape letters: r rows, w columns of the part.
"""

from collections.abc import Mapping

from torch import Tensor

from narrowcast.components.train.codebook import decode, fit_codebook
from narrowcast.components.train.forms import Codebook
from narrowcast.components.train.plan import Block
from narrowcast.components.train.quantise import dequantise, quantise, to_float16


def part_tensors(values_rw: Tensor, block: Block) -> dict[str, Tensor]:
    """By name: `values` (r x w float32 or float16, or r x b uint8), below 16 bits with `scale` (r; float16 for 8 bits,
    uint8 for 4 and 2); of a codebook `codes` (r x b uint8) and `centroids` (groups x centroids x columns of a group).

    Raises NarrowcastError for values that cannot be stored.
    """
    if isinstance(block.form, Codebook):
        codes_rb, centroids_GKv = fit_codebook(values_rw, block.form, block.bits)
        return {"codes": codes_rb, "centroids": centroids_GKv}
    if block.bits == 32:
        return {"values": values_rw.contiguous()}
    if block.bits == 16:
        return {"values": to_float16(values_rw).contiguous()}
    values_rb, scale_r = quantise(values_rw, block.bits)
    return {"values": values_rb, "scale": scale_r}


def kinds(block: Block) -> tuple[str, ...]:
    """The names of what is stored for each part of a block."""
    if isinstance(block.form, Codebook):
        return "codes", "centroids"
    return ("values",) if block.bits >= 16 else ("values", "scale")


def part_rows(tensors: Mapping[str, Tensor], block: Block, width: int) -> Tensor:
    """The float32 rows (r x `width`) of what `part_tensors` gave, or of some rows of it."""
    if isinstance(block.form, Codebook):
        return decode(tensors["codes"], tensors["centroids"], block.form)
    if block.bits >= 16:
        return tensors["values"].float()
    return dequantise(tensors["values"], tensors["scale"], block.bits, width)


def rows_of(tensors: Mapping[str, Tensor], positions_n: Tensor) -> dict[str, Tensor]:
    """What is stored for the rows at `positions_n` of a part; centroids are for all rows."""
    return {
        name: value if name == "centroids" else value.index_select(0, positions_n) for name, value in tensors.items()
    }
