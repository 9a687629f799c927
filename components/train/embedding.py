"""The embedding layer, built from a plan.

Shape letters: B rows, F categorical fields, S sequence fields, T = F + S tokens, L sequence length, D width,
R kept rows, k inner width.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.plan import Plan, TablePlan
from narrowcast.components.train.scorer import Found, valid_elements
from narrowcast.errors import NarrowcastError

INIT_STD = 0.01
PREFIX = "table_"
"""Keeps a field named `type` or `items` from clashing with an attribute of torch's ModuleDict."""


class EmbeddingTable(nn.Module):
    """One table of a plan: rows looked up, folded, masked and projected to the model's width.

    Initial values depend on `generator` and the table's full size alone, so that two plans of the same data start from
    the same values where both keep them. MLET (arXiv 2309.15881, section 3): with an inner width k, E = W2 W1, W2 drawn
    as the plain table, W1 ~ N(0, 1/k) so that the product has the plain table's variance (our choice).
    """

    mask_ND: Tensor
    starts: Tensor

    def __init__(self, plan: TablePlan, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.plan = plan
        internal = plan.projection or width
        inner = plan.inner_width or internal
        values = torch.randn(plan.rows, inner, generator=generator) * INIT_STD
        self.weight_Rk = nn.Parameter(values[: plan.kept_rows].clone())
        self.core_kD = None
        if plan.inner_width:
            self.core_kD = nn.Parameter(torch.randn(inner, internal, generator=generator) / inner**0.5)
        self.lift_dD = None
        if plan.projection:
            self.lift_dD = nn.Parameter(torch.randn(internal, width, generator=generator) / internal**0.5)
        mask = torch.zeros(len(plan.blocks), internal)
        for i, block in enumerate(plan.blocks):
            mask[i, list(block.columns)] = 1.0
        self.masked = bool((mask == 0).any())
        self.register_buffer("mask_ND", mask, persistent=False)
        starts = torch.tensor([block.start for block in plan.blocks[1:]], dtype=torch.int64)
        self.register_buffer("starts", starts, persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        """The folded and masked rows of `ids` (any shape, int64, all >= 0), before the projection."""
        ids = torch.where(ids < self.plan.kept_rows, ids, 0)
        rows = nn.functional.embedding(ids, self.weight_Rk)
        if self.core_kD is not None:
            rows = rows @ self.core_kD
        if self.masked:
            rows = rows * self.mask_ND[torch.bucketize(ids, self.starts, right=True)]
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows(ids)
        return rows if self.lift_dD is None else rows @ self.lift_dD

    @torch.no_grad()
    def folded(self) -> Tensor:
        """All kept rows as they are served, R x internal width, float32."""
        return self.rows(torch.arange(self.plan.kept_rows, device=self.weight_Rk.device))


class EmbeddingLayer(nn.Module):
    """Ids to the rows of their tables."""

    def __init__(self, layout: Layout, plan: Plan, seed: int) -> None:
        super().__init__()
        self.layout = layout
        self.plan = plan
        self.named_tables = nn.ModuleDict()
        for i, (name, rows) in enumerate(layout.table_rows.items()):
            table_plan = plan.table(name)
            if table_plan.rows != rows:
                raise NarrowcastError(
                    f"the plan's table '{name}' is for {table_plan.rows} rows, the data has {rows}: "
                    "search again on this data"
                )
            generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
            self.named_tables[PREFIX + name] = EmbeddingTable(table_plan, plan.width, generator)

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """Every table by its name, in the layout's order."""
        return {key.removeprefix(PREFIX): cast(EmbeddingTable, table) for key, table in self.named_tables.items()}

    def forward(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        return look_up(self.layout, self.tables, ids_BF, sequences)


def look_up(
    layout: Layout, tables: Mapping[str, Callable[[Tensor], Tensor]], ids_BF: Tensor, sequences: Mapping[str, Tensor]
) -> Found:
    """Look every field up in its table; padding reads row 0. Shared by trained and packed tables.

    A table maps ids (any shape, int64, all >= 0) to one vector of D values each.
    """
    columns_BF = ids_BF.long()
    found = [tables[layout.table_of[name]](columns_BF[:, i]) for i, name in enumerate(layout.categorical)]
    rows_BLD = {name: tables[layout.table_of[name]](ids.long().clamp(min=0)) for name, ids in sequences.items()}
    return Found(torch.stack(found, dim=1), rows_BLD, valid_elements(sequences))
