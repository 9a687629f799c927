"""From ids to the rows that are trained for them, where blocks' ids share rows, for all tables of a group at once.

Shape letters: n ids, m those that read two rows, N blocks of all tables, d width of a row.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from narrowcast.components.train.forms import QR, Hash
from narrowcast.components.train.plan import Block


class Reads(NamedTuple):
    """The trained rows that ids read: one each (n), and of those at `two_m` another one (m), by which the first is
    multiplied where `times_m1`, else they are added."""

    first_n: Tensor
    second_m: Tensor
    two_m: Tensor
    times_m1: Tensor


class RowMap(nn.Module):
    """`blocks` of all tables, one table after another; ids count on from table to table, and so do trained rows."""

    id_starts_N: Tensor
    row_starts_N: Tensor
    modulus_N: Tensor
    quotients_N: Tensor
    times_N: Tensor

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        num_ids = [block.stop - block.start for block in blocks]
        num_rows = [sum(part.rows for part in block.parts) for block in blocks]
        row_starts = list(accumulate(num_rows, initial=0))[:-1]
        modulus = [_modulus(block) for block in blocks]
        quotients = [
            start + block.form.remainders if isinstance(block.form, QR) else -1
            for start, block in zip(row_starts, blocks, strict=True)
        ]
        times = [isinstance(block.form, QR) and block.form.combine == "multiply" for block in blocks]
        self.register_buffer("id_starts_N", torch.tensor(list(accumulate(num_ids, initial=0))[:-1]), persistent=False)
        self.register_buffer("row_starts_N", torch.tensor(row_starts), persistent=False)
        self.register_buffer("modulus_N", torch.tensor(modulus), persistent=False)
        self.register_buffer("quotients_N", torch.tensor(quotients), persistent=False)
        self.register_buffer("times_N", torch.tensor(times), persistent=False)

    def forward(self, ids_n: Tensor) -> Reads:
        block_n = torch.bucketize(ids_n, self.id_starts_N[1:], right=True)
        local_n = ids_n - self.id_starts_N[block_n]
        first_n = self.row_starts_N[block_n] + local_n % self.modulus_N[block_n]
        two_m = (self.quotients_N[block_n] >= 0).nonzero().squeeze(1)
        block_m = block_n[two_m]
        second_m = self.quotients_N[block_m] + local_n[two_m] // self.modulus_N[block_m]
        return Reads(first_n, second_m, two_m, self.times_N[block_m].unsqueeze(1))


def combined(reads: Reads, first_nd: Tensor, second_md: Tensor) -> Tensor:
    """The ids' rows, n x d, from the trained rows that they read; concatenated ones are added, as each has zeros where
    the other has its columns."""
    of_two_md = first_nd.index_select(0, reads.two_m)
    of_two_md = torch.where(reads.times_m1, of_two_md * second_md, of_two_md + second_md)
    return first_nd.index_copy(0, reads.two_m, of_two_md)


def _modulus(block: Block) -> int:
    """What a local id is taken modulo, for the first row that it reads."""
    if isinstance(block.form, Hash):
        return block.form.buckets
    return block.form.remainders if isinstance(block.form, QR) else block.stop - block.start
