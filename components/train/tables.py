"""Embedding tables of a plan whose rows have one form, fused: their rows lie in one parameter, one lookup serves all.

Shape letters: X batch (any rows), F looked-up columns, T tables, R kept rows of all tables, k trained width of a row,
d width before a projection (k but for MLET), D the model's width, N blocks of all tables.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from narrowcast.components.train.plan import TablePlan
from narrowcast.components.train.quantise import rounded
from narrowcast.components.train.rows import look_up_rows

Form = tuple[int, int, bool, bool]
"""Trained width, width before the projection, whether there is a core, whether there is a projection."""


def form_of(plan: TablePlan, width: int) -> Form:
    """Tables of one form can be fused."""
    internal = plan.projection or width
    return plan.inner_width or internal, internal, bool(plan.inner_width), bool(plan.projection)


class TableGroup(nn.Module):
    """Tables of one form, looked up together: rows folded, masked and projected to the model's width.

    Initial values depend on a table's generator and full size alone, so that two plans of the same data start from
    the same values where both keep them. MLET (arXiv 2309.15881, section 3): with an inner width k, E = W2 W1, W2 drawn
    as the plain table, W1 ~ N(0, 1/k) so that the product has the plain table's variance (our choice).
    """

    starts_T: Tensor
    kept_T: Tensor
    mask_Nd: Tensor
    block_starts: Tensor

    def __init__(
        self, plans: Sequence[TablePlan], width: int, generators: Sequence[torch.Generator], init_std: float
    ) -> None:
        super().__init__()
        inner, internal, has_core, has_lift = form_of(plans[0], width)
        assert all(form_of(plan, width) == form_of(plans[0], width) for plan in plans)
        kept = [plan.kept_rows for plan in plans]
        starts = [sum(kept[:i]) for i in range(len(kept))]
        weight_Rk = torch.empty(sum(kept), inner)
        cores, lifts = [], []
        for plan, start, generator in zip(plans, starts, generators, strict=True):
            values = torch.randn(plan.rows, inner, generator=generator) * init_std
            weight_Rk[start : start + plan.kept_rows] = values[: plan.kept_rows]
            if has_core:
                cores.append(torch.randn(inner, internal, generator=generator) / inner**0.5)
            if has_lift:
                lifts.append(torch.randn(internal, width, generator=generator) / internal**0.5)
        self.weight_Rk = nn.Parameter(weight_Rk)
        self.core_Tkd = nn.Parameter(torch.stack(cores)) if has_core else None
        self.lift_TdD = nn.Parameter(torch.stack(lifts)) if has_lift else None
        blocks = [(start + b.start, b.columns) for plan, start in zip(plans, starts, strict=True) for b in plan.blocks]
        mask_Nd = torch.zeros(len(blocks), internal)
        for i, (_, columns) in enumerate(blocks):
            mask_Nd[i, list(columns)] = 1.0
        self.masked = bool((mask_Nd == 0).any())
        self.register_buffer("mask_Nd", mask_Nd, persistent=False)
        self.register_buffer("block_starts", torch.tensor([start for start, _ in blocks[1:]]).long(), persistent=False)
        self.register_buffer("starts_T", torch.tensor(starts), persistent=False)
        self.register_buffer("kept_T", torch.tensor(kept), persistent=False)
        self.tables = [EmbeddingTable(self, i, plan, starts[i]) for i, plan in enumerate(plans)]

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
        positions = [
            torch.where(ids_XF < self.kept_T[table_F], ids_XF, 0) + self.starts_T[table_F] for ids_XF, table_F in wanted
        ]
        rows_nd = self._folded(torch.cat([position_XF.flatten() for position_XF in positions]))
        found = []
        for part_nd, position_XF in zip(rows_nd.split([p.numel() for p in positions]), positions, strict=True):
            rows = part_nd.view(*position_XF.shape, rows_nd.shape[1])
            if self.masked:
                rows = rows * self.mask_Nd[torch.bucketize(position_XF, self.block_starts, right=True)]
            found.append(rows)
        return found

    def _folded(self, positions_n: Tensor) -> Tensor:
        """The rows at `positions_n`, n x d; with MLET's cores each distinct row is folded once."""
        if self.core_Tkd is None:
            return look_up_rows(self.weight_Rk, positions_n)
        distinct_u, inverse_n = torch.unique(positions_n, return_inverse=True)
        rows_uk = look_up_rows(self.weight_Rk, distinct_u)
        bounds = torch.searchsorted(distinct_u, self.starts_T[1:]).tolist()
        parts = rows_uk.tensor_split(bounds)
        rows_ud = torch.cat([part_uk @ core_kd for part_uk, core_kd in zip(parts, self.core_Tkd, strict=True)])
        return nn.functional.embedding(inverse_n, rows_ud)


class EmbeddingTable:
    """One table of a group, a view: it holds no values of its own."""

    def __init__(self, group: TableGroup, index: int, plan: TablePlan, start: int) -> None:
        self.group, self.index, self.plan, self.start = group, index, plan, start

    @property
    def weight_Rk(self) -> Tensor:  # noqa: N802
        """Its kept rows of the group's parameter."""
        return self.group.weight_Rk[self.start : self.start + self.plan.kept_rows]

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

    def _wanted(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids.reshape(-1, 1), torch.tensor([self.index], device=ids.device)


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
            part = rows[block.start : block.stop][:, columns]
            rows[block.start : block.stop, columns] = rounded(part, block.bits, torch.ones_like(part))
    return rows
