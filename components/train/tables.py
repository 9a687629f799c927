"""Embedding tables of a plan whose rows have one form, fused: their rows lie in one parameter, one lookup serves all.

Shape letters: X batch (any rows), F looked-up columns, n ids of all of them, u distinct rows, T tables, P parts of all
tables, R trained rows of all tables, r those of one part, k trained width of a row, d width before a projection (k but
for MLET), D the model's width.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from narrowcast.components.train.forms import QR, Part
from narrowcast.components.train.plan import Block, TablePlan
from narrowcast.components.train.quantise import rounded
from narrowcast.components.train.rows import look_up_rows
from narrowcast.components.train.sharing import RowMap, combined
from narrowcast.components.train.storage import part_rows, part_tensors

RowForm = tuple[int, int, bool, bool]
"""Trained width, width before the projection, whether there is a core, whether there is a projection."""


def form_of(plan: TablePlan, width: int) -> RowForm:
    """Tables of one form can be fused."""
    internal = plan.projection or width
    return plan.inner_width or internal, internal, bool(plan.inner_width), bool(plan.projection)


class TableGroup(nn.Module):
    """Tables of one form, looked up together: rows folded, masked, put together and projected to the model's width.

    Initial values depend on a table's generator and full size alone, so that two plans of the same data start from
    the same values where both keep them; shared rows start from the first values of their block. MLET (arXiv
    2309.15881, section 3): with an inner width k, E = W2 W1, W2 drawn as the plain table, W1 ~ N(0, 1/k) so that the
    product has the plain table's variance (our choice).

    `rounds`, false at first: whether looked-up rows come back as they will be stored. The rounding passes the gradient
    on as it is (straight-through, arXiv 1308.3432, section 4).
    """

    starts_T: Tensor
    kept_T: Tensor
    row_starts_T: Tensor
    part_starts_P: Tensor
    bits_P: Tensor
    mask_Pd: Tensor

    def __init__(
        self, plans: Sequence[TablePlan], width: int, generators: Sequence[torch.Generator], init_std: float
    ) -> None:
        super().__init__()
        inner, internal, has_core, has_lift = form_of(plans[0], width)
        assert all(form_of(plan, width) == form_of(plans[0], width) for plan in plans)
        self.rounds = False
        row_starts = _starts(plan.trained_rows for plan in plans)
        weight_Rk = torch.empty(sum(plan.trained_rows for plan in plans), inner)
        cores, lifts = [], []
        for plan, start, generator in zip(plans, row_starts, generators, strict=True):
            values = torch.randn(plan.rows, inner, generator=generator) * init_std
            _fill(weight_Rk[start : start + plan.trained_rows], values, plan.blocks, init_std)
            if has_core:
                cores.append(torch.randn(inner, internal, generator=generator) / inner**0.5)
            if has_lift:
                lifts.append(torch.randn(internal, width, generator=generator) / internal**0.5)
        self.weight_Rk = nn.Parameter(weight_Rk)
        self.core_Tkd = nn.Parameter(torch.stack(cores)) if has_core else None
        self.lift_TdD = nn.Parameter(torch.stack(lifts)) if has_lift else None
        blocks = [block for plan in plans for block in plan.blocks]
        self.row_map = RowMap(blocks) if any(block.is_shared for block in blocks) else None
        parts = [(block, part) for block in blocks for part in block.parts]
        mask_Pd = torch.zeros(len(parts), internal)
        for i, (_, part) in enumerate(parts):
            mask_Pd[i, list(part.columns)] = 1.0
        self.masked = bool((mask_Pd == 0).any())
        self.register_buffer("mask_Pd", mask_Pd, persistent=False)
        numbers = {
            "starts_T": _starts(plan.kept_rows for plan in plans),
            "kept_T": [plan.kept_rows for plan in plans],
            "row_starts_T": row_starts,
            "part_starts_P": _starts(part.rows for _, part in parts),
            "bits_P": [block.bits for block, _ in parts],
        }
        for name, values_of in numbers.items():
            self.register_buffer(name, torch.tensor(values_of), persistent=False)
        self.tables = [EmbeddingTable(self, i, plan, row_starts[i]) for i, plan in enumerate(plans)]

    def forward(self, wanted: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Rows (X x F x D) for every pair of ids (X x F, int64, all >= 0) and each column's table (F, int64).

        All are gathered at once, so that the backward pass adds up equal ids' gradients once.
        """
        rows = self.folded_rows(wanted)
        if self.lift_TdD is None:
            return rows
        return [
            torch.einsum("xfd,fdw->xfw", rows_XFd, self.lift_TdD[table_F])
            for rows_XFd, (_, table_F) in zip(rows, wanted, strict=True)
        ]

    def folded_rows(self, wanted: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """As `forward`, but before the projection (X x F x d)."""
        ids = [
            torch.where(ids_XF < self.kept_T[table_F], ids_XF, 0) + self.starts_T[table_F] for ids_XF, table_F in wanted
        ]
        rows_nd = self._of_ids(torch.cat([ids_XF.flatten() for ids_XF in ids]))
        split = rows_nd.split([ids_XF.numel() for ids_XF in ids])
        return [part_nd.view(*ids_XF.shape, rows_nd.shape[1]) for part_nd, ids_XF in zip(split, ids, strict=True)]

    def _of_ids(self, ids_n: Tensor) -> Tensor:
        """The rows (n x d) of ids that count on from table to table."""
        if self.row_map is None:
            return self.trained_rows(ids_n)
        reads = self.row_map(ids_n)
        rows = self.trained_rows(torch.cat([reads.first_n, reads.second_m]))
        return combined(reads, *rows.split([len(reads.first_n), len(reads.second_m)]))

    def trained_rows(self, rows_n: Tensor) -> Tensor:
        """The trained rows numbered `rows_n`, n x d: folded, masked, and with `rounds` rounded.

        With MLET's cores or rounding each distinct row is computed once.
        """
        if self.core_Tkd is None and not self.rounds:
            return self.unrounded_rows(rows_n)
        distinct_u, inverse_n = torch.unique(rows_n, return_inverse=True)
        rows_ud = self.unrounded_rows(distinct_u)
        if self.rounds:
            rows_ud = _StraightThrough.apply(rows_ud, self._rounded(rows_ud.detach(), distinct_u))
        return nn.functional.embedding(inverse_n, rows_ud)

    def unrounded_rows(self, rows_n: Tensor) -> Tensor:
        """As `trained_rows`, but never rounded; with MLET's cores `rows_n` are distinct and ascending."""
        rows_nd = look_up_rows(self.weight_Rk, rows_n)
        if self.core_Tkd is not None:
            rows_nd = self._folded(rows_nd, self.core_Tkd, rows_n)
        return rows_nd * self.mask_Pd[self._part_of(rows_n)] if self.masked else rows_nd

    def _folded(self, rows_uk: Tensor, core_Tkd: Tensor, distinct_u: Tensor) -> Tensor:
        """In float64 where rows are rounded: a last bit that depends on the other rows of a batch could tip it."""
        parts = rows_uk.tensor_split(torch.searchsorted(distinct_u, self.row_starts_T[1:]).tolist())
        if not self.rounds:
            return torch.cat([part_uk @ core_kd for part_uk, core_kd in zip(parts, core_Tkd, strict=True)])
        return torch.cat(
            [part_uk.double() @ core_kd.double() for part_uk, core_kd in zip(parts, core_Tkd, strict=True)]
        ).float()

    def _rounded(self, rows_ud: Tensor, distinct_u: Tensor) -> Tensor:
        part_u = self._part_of(distinct_u)
        bits_u, stored_ud = self.bits_P[part_u], rows_ud.clone()
        for bits in bits_u.unique().tolist():
            here = (bits_u == bits).nonzero().squeeze(1)
            stored_ud[here] = rounded(rows_ud[here], bits, self.mask_Pd[part_u[here]])
        return stored_ud

    def _part_of(self, rows_n: Tensor) -> Tensor:
        return torch.bucketize(rows_n, self.part_starts_P[1:], right=True)


class EmbeddingTable:
    """One table of a group, a view: it holds no values of its own. `start`: the first of its trained rows."""

    def __init__(self, group: TableGroup, index: int, plan: TablePlan, start: int) -> None:
        self.group, self.index, self.plan, self.start = group, index, plan, start

    @property
    def weight_Rk(self) -> Tensor:  # noqa: N802
        """Its trained rows of the group's parameter; where no rows are shared, those of its kept ids."""
        return self.group.weight_Rk[self.start : self.start + self.plan.trained_rows]

    @property
    def core_kD(self) -> Tensor | None:  # noqa: N802
        return None if self.group.core_Tkd is None else self.group.core_Tkd[self.index]

    @property
    def lift_dD(self) -> Tensor | None:  # noqa: N802
        return None if self.group.lift_TdD is None else self.group.lift_TdD[self.index]

    def __call__(self, ids: Tensor) -> Tensor:
        """The rows of `ids` (any shape, int64, all >= 0) in the model's width."""
        (rows_X1D,) = self.group([self._wanted(ids)])
        return rows_X1D.view(*ids.shape, rows_X1D.shape[-1])

    def rows(self, ids: Tensor) -> Tensor:
        """The folded and masked rows of `ids`, before the projection."""
        (rows_X1d,) = self.group.folded_rows([self._wanted(ids)])
        return rows_X1d.view(*ids.shape, rows_X1d.shape[-1])

    @torch.no_grad()
    def folded(self) -> Tensor:
        """All kept rows as they are served, R x width before the projection, float32."""
        return self.rows(torch.arange(self.plan.kept_rows, device=self.group.weight_Rk.device))

    @torch.no_grad()
    def parts(self) -> Iterator["TrainedPart"]:
        """What there is to store, before it is rounded."""
        start = self.start
        for number, block in enumerate(self.plan.blocks):
            for part in block.parts:
                rows_r = torch.arange(start, start + part.rows, device=self.group.weight_Rk.device)
                if part.columns:
                    values_rw = self.group.unrounded_rows(rows_r)
                    if len(part.columns) < values_rw.shape[1]:
                        values_rw = values_rw[:, list(part.columns)]
                    yield TrainedPart(number, block, part, rows_r, values_rw)
                start += part.rows

    def _wanted(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids.reshape(-1, 1), torch.tensor([self.index], device=ids.device)


class TrainedPart(NamedTuple):
    """A part that has columns: its block and the block's number, itself, which of its group's trained rows it has (r),
    and their values in its columns (r x w), folded."""

    number: int
    block: Block
    part: Part
    rows_r: Tensor
    values_rw: Tensor


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stored: Tensor) -> Tensor:
        return stored

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@torch.no_grad()
def round_as_stored(group: TableGroup) -> None:
    """Replace trained tables' values, in place, by those that their packed form will give: folded and quantised."""
    weight_Rd = torch.zeros(len(group.weight_Rk), group.mask_Pd.shape[1], device=group.weight_Rk.device)
    for table in group.tables:
        for _, block, part, rows_r, values_rw in table.parts():
            tensors = part_tensors(values_rw, block)
            columns_w = torch.tensor(part.columns, device=weight_Rd.device)
            weight_Rd[rows_r.unsqueeze(1), columns_w] = part_rows(tensors, block, len(part.columns))
    group.weight_Rk = nn.Parameter(weight_Rd)
    group.core_Tkd = None
    group.rounds = False


def _fill(weight_Rk: Tensor, values: Tensor, blocks: Sequence[Block], init_std: float) -> None:
    """A table's initial values: a block's trained rows are the first of its ids' rows."""
    start = 0
    for block in blocks:
        stop = start + sum(part.rows for part in block.parts)
        own = values[block.start : block.start + stop - start]
        weight_Rk[start:stop] = own * block.form.initial_scale(init_std) if isinstance(block.form, QR) else own
        start = stop


def _starts(numbers: Iterable[int]) -> list[int]:
    """The sum of all numbers before each."""
    return list(accumulate(numbers, initial=0))[:-1]
