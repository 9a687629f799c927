"""Rows of a table looked up for a batch, and their gradient: sparse, so that its cost depends on the ids alone.

Shape letters: n ids with repetitions, u distinct ids, R rows of the table, k their width.
"""

from typing import Any

import torch
from torch import Tensor, nn


def look_up_rows(weight_Rk: Tensor, ids_n: Tensor) -> Tensor:
    """`weight_Rk[ids_n]`, n x k. The gradient of `weight_Rk` is a coalesced sparse tensor of the distinct ids' rows."""
    rows_nk: Tensor = _LookUp.apply(weight_Rk, ids_n)
    return rows_nk


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_Rk: Tensor, ids_n: Tensor) -> Tensor:
        ctx.save_for_backward(ids_n)
        ctx.num_rows = len(weight_Rk)
        return weight_Rk.index_select(0, ids_n)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids_n,) = ctx.saved_tensors
        return sum_by_id(ids_n, gradients[0], ctx.num_rows), None


def sum_by_id(ids_n: Tensor, values_nk: Tensor, num_rows: int) -> Tensor:
    """A coalesced sparse tensor, `num_rows` x k: each distinct id's values added up in the order in which they come.

    Sorting brings equal ids together and an embedding bag adds them up; a radix sort of 32 bits where they suffice.
    """
    narrow_n = ids_n.int() if num_rows <= torch.iinfo(torch.int32).max else ids_n
    sorted_n, order_n = torch.sort(narrow_n, stable=True)
    is_first_n = torch.ones(len(ids_n), dtype=torch.bool, device=ids_n.device)
    torch.ne(sorted_n[1:], sorted_n[:-1], out=is_first_n[1:])
    starts_u = is_first_n.nonzero().squeeze(1)
    sums_uk = nn.functional.embedding_bag(order_n, values_nk.contiguous(), starts_u, mode="sum")
    return sparse_rows(sorted_n[starts_u].long(), sums_uk, num_rows)


def sparse_rows(ids_u: Tensor, values_uk: Tensor, num_rows: int) -> Tensor:
    """The sparse tensor with `values_uk` in the rows `ids_u` (ascending, each once) of `num_rows`."""
    return torch.sparse_coo_tensor(
        ids_u.unsqueeze(0),
        values_uk,
        (num_rows, values_uk.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )


def coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient with each row once, in ascending order: several backward passes leave a row for each.

    Looks at the ids themselves, as torch forgets that what `look_up_rows` gave was coalesced.
    """
    ids_n, values_nk = gradient._indices()[0], gradient._values()
    if bool((ids_n[1:] > ids_n[:-1]).all()):
        return sparse_rows(ids_n, values_nk, len(gradient))
    return sum_by_id(ids_n, values_nk, len(gradient))
