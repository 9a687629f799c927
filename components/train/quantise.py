"""How the values of a row are stored: float32, float16, or integers of 8, 4 or 2 bits with one scale a row.

It stands beside the plan because training and search judge a plan on the values that will be served, and packing writes
them. Bits and scales are our choices:

- An integer n is stored unsigned and stands for the value (n - OFFSET) scale: 8 bits for -127 to 127 times the scale, 4
  for -7 to 7, 2 for -1.5, -0.5, 0.5 and 1.5: on trained tables (MovieLens-100K) these err by 5 % of the squared values,
  -2 to 1 and -1 to 1 by 8 %.
- 8 bits have a float16 scale. 4 and 2 have one of a byte, so that few bits are not outweighed by their scale: the top
  bits of a float32, five of its exponent and three of its mantissa, `(code + SHIFTED) << 20` read as a float32.
- A row of zeros has scale 0 and gives zeros.

Shape letters: R rows, w columns, b stored bytes of a row's values.
"""

import torch
from torch import Tensor, nn

from narrowcast.errors import NarrowcastError

LEVEL = {8: 127.0, 4: 7.0, 2: 1.5}
"""Largest multiple of the scale by bits."""
OFFSET = {8: 128.0, 4: 8.0, 2: 1.5}
"""What a stored integer is more than its multiple."""
CLIPS = {4: 4, 2: 10}
"""So many byte scales are tried, the first the least that reaches a row's largest value, each next a code lower."""
SHIFTED = 824
"""What a byte scale's code is less than the first 12 bits of its float32; code 1 is 2^-24 x 1.125, code 255 is 240."""
FLOAT16 = torch.finfo(torch.float16)
SMALLEST_SCALE = FLOAT16.smallest_normal * FLOAT16.eps
CHUNK = 65536
"""Rows quantised at once, for their intermediate values to stay in the processor's cache."""


def quantise(rows_Rw: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Float rows to `(values_Rb uint8, scale_R)`; the scale float16 for 8 bits, a uint8 code for 4 and 2.

    Values of less than a byte fill bytes from their low bits on. Integers are chosen for the *rounded* scale, so that
    its rounding error is not added to theirs. Of a stored row x' with scale s and n = LEVEL[bits]:
    |x - x'| <= max(s / 2, max|x| - n s); for 8 bits s = max|x| / 127 to float16's precision, the second term but what
    that rounding cuts off. For 4 and 2 bits s is that of the least squared error among some that cut off the largest
    values, so that the root of the row's mean squared error is at most 0.5625 max|x| / n (or 2^-24, if that is more).
    Raises NarrowcastError for values that are not finite or beyond what a scale reaches.
    """
    values, scales = [], []
    for chunk_Rw in rows_Rw.split(CHUNK):
        levels_Rw, scale_R = _levels(chunk_Rw, bits)
        values.append(packed_bits((levels_Rw + OFFSET[bits]).to(torch.uint8), bits))
        scales.append(scale_R)
    return torch.cat(values), torch.cat(scales)


def dequantise(values_Rb: Tensor, scale_R: Tensor, bits: int, width: int) -> Tensor:
    """The float32 rows (R x `width`) that `quantise` stored."""
    integers_Rw = unpacked_bits(values_Rb, bits, width)
    return (integers_Rw.float() - OFFSET[bits]) * float_scale(scale_R).unsqueeze(1)


def rounded(rows_Rw: Tensor, bits: int, kept_Rw: Tensor) -> Tensor:
    """The rows as they come back from storage, bit for bit, of which only the columns where `kept_Rw` is 1 are stored.

    The others must be 0 and stay so. Bounds and errors as `quantise`.
    """
    if bits == 32:
        return rows_Rw
    if bits == 16:
        return to_float16(rows_Rw).float()
    levels_Rw, scale_R = _levels(rows_Rw, bits, kept_Rw)
    return levels_Rw * float_scale(scale_R).unsqueeze(1)


def to_float16(values: Tensor) -> Tensor:
    """Raises NarrowcastError for values that are not finite in float16."""
    halves = values.to(torch.float16)
    if not bool(halves.isfinite().all()):
        raise _beyond(16, FLOAT16.max)
    return halves


def float_scale(scale_R: Tensor) -> Tensor:
    """Stored scales as float32."""
    if scale_R.dtype != torch.uint8:
        return scale_R.float()
    return torch.where(scale_R == 0, 0.0, ((scale_R.int() + SHIFTED) << 20).view(torch.float32))


def packed_bits(integers_Rw: Tensor, bits: int) -> Tensor:
    """Unsigned integers of `bits` each (R x w, uint8) put into bytes, the first in the lowest bits; R x b."""
    per_byte = 8 // bits
    if per_byte == 1:
        return integers_Rw.contiguous()
    padded = nn.functional.pad(integers_Rw, (0, -integers_Rw.shape[1] % per_byte))
    shifted = padded.unflatten(1, (-1, per_byte)) << (torch.arange(per_byte, device=padded.device) * bits)
    return shifted.sum(2).to(torch.uint8)


def unpacked_bits(values_Rb: Tensor, bits: int, width: int) -> Tensor:
    """What `packed_bits` put into bytes, R x `width` uint8."""
    if bits == 8:
        return values_Rb
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=values_Rb.device)
    return ((values_Rb.unsqueeze(2) >> places) & (2**bits - 1)).flatten(1)[:, :width]


def _levels(rows_Rw: Tensor, bits: int, kept_Rw: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Multiples of the scale (R x w, float32; 0 in columns that are not kept), and the scale as it is stored."""
    if not bool(rows_Rw.isfinite().all()):
        raise _beyond(bits, LEVEL[bits] * (FLOAT16.max if bits == 8 else 240))
    largest_R = rows_Rw.abs().amax(dim=1) if rows_Rw.shape[1] else rows_Rw.new_zeros(len(rows_Rw))
    scale_R = _half_scale(largest_R) if bits == 8 else _byte_scale(largest_R, bits)
    levels_Rw = _nearest(rows_Rw, float_scale(scale_R), bits, kept_Rw)
    if bits == 8:
        return levels_Rw, scale_R
    least_R = _squared_error(rows_Rw, levels_Rw, float_scale(scale_R))
    first_R = scale_R
    for lower in range(1, CLIPS[bits]):
        other_R = torch.where(first_R == 0, 0, (first_R.int() - lower).clamp(min=1)).to(torch.uint8)
        others_Rw = _nearest(rows_Rw, float_scale(other_R), bits, kept_Rw)
        error_R = _squared_error(rows_Rw, others_Rw, float_scale(other_R))
        better_R = error_R < least_R
        least_R = torch.where(better_R, error_R, least_R)
        scale_R = torch.where(better_R, other_R, scale_R)
        levels_Rw = torch.where(better_R.unsqueeze(1), others_Rw, levels_Rw)
    return levels_Rw, scale_R


def _half_scale(largest_R: Tensor) -> Tensor:
    """Rows too small for float16 take the smallest positive scale."""
    scale_R = (largest_R / LEVEL[8]).to(torch.float16)
    if not bool(scale_R.isfinite().all()):
        raise _beyond(8, LEVEL[8] * FLOAT16.max)
    return torch.where((scale_R == 0) & (largest_R > 0), torch.full_like(scale_R, SMALLEST_SCALE), scale_R)


def _byte_scale(largest_R: Tensor, bits: int) -> Tensor:
    """The code of the least scale that reaches the largest value; 0 for rows of zeros."""
    top_R = ((largest_R.float() / LEVEL[bits]).view(torch.int32) + (1 << 20) - 1) >> 20
    code_R = (top_R - SHIFTED).clamp(min=1)
    if bool((code_R > 255).any()):
        raise _beyond(bits, LEVEL[bits] * 240)
    return torch.where(largest_R == 0, 0, code_R).to(torch.uint8)


def _nearest(rows_Rw: Tensor, scale_R: Tensor, bits: int, kept_Rw: Tensor | None) -> Tensor:
    """The multiples of the scale nearest to the rows' values; halves for 2 bits, whole numbers else."""
    divisor_R1 = torch.where(scale_R == 0, 1.0, scale_R).unsqueeze(1)
    between = 0.5 if bits == 2 else 0.0
    levels_Rw = ((rows_Rw / divisor_R1 - between).round_() + between).clamp_(-LEVEL[bits], LEVEL[bits])
    return levels_Rw if kept_Rw is None else levels_Rw * kept_Rw


def _squared_error(rows_Rw: Tensor, levels_Rw: Tensor, scale_R: Tensor) -> Tensor:
    """Summed column by column, so that equal rows have equal errors among whatever rows and dropped columns."""
    squares_wR = (rows_Rw - levels_Rw * scale_R.unsqueeze(1)).square_().T.contiguous()
    total_R = torch.zeros_like(scale_R)
    for square_R in squares_wR:
        total_R += square_R
    return total_R


def _beyond(bits: int, largest: float) -> NarrowcastError:
    return NarrowcastError(
        f"an embedding table holds values that {bits} bits cannot store (NaN, infinite or over {largest:g}): train "
        "again with a smaller learning rate, or search with bits 32"
    )
