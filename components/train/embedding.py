"""The embedding layer, built from a plan.

Shape letters: B rows, F categorical fields, L sequence length, D width.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.plan import Plan, demand_roundable
from narrowcast.components.train.scorer import Found, valid_elements
from narrowcast.components.train.tables import EmbeddingTable, RowForm, TableGroup, form_of
from narrowcast.errors import NarrowcastError

PREFIX = "table_"
"""Keeps a field named `type` or `items` from clashing with an attribute of torch's ModuleDict."""


class EmbeddingLayer(nn.Module):
    """Ids to the rows of their tables, which are fused to as few groups as the plan has forms of rows."""

    def __init__(self, layout: Layout, plan: Plan, seed: int, init_std: float) -> None:
        super().__init__()
        self.layout = layout
        self.plan = plan
        by_form: dict[RowForm, list[str]] = {}
        for name, rows in layout.table_rows.items():
            table_plan = plan.table(name)
            if table_plan.rows != rows:
                raise NarrowcastError(
                    f"the plan's table '{name}' is for {table_plan.rows} rows, the data has {rows}: "
                    "search again on this data"
                )
            by_form.setdefault(form_of(table_plan, plan.width), []).append(name)
        self.groups = nn.ModuleList()
        self._lookups: list[GroupLookup] = []
        found: dict[str, EmbeddingTable] = {}
        for names in by_form.values():
            generators = [table_generator(layout, name, seed) for name in names]
            group = TableGroup([plan.table(name) for name in names], plan.width, generators, init_std)
            self.groups.append(group)
            self._lookups.append(GroupLookup(layout, names))
            found |= dict(zip(names, group.tables, strict=True))
        self.tables = {name: found[name] for name in layout.table_rows}
        """Every table by its name, in the layout's order."""
        columns = [column for lookup in self._lookups for column in lookup.columns]
        self._order = None if columns == sorted(columns) else torch.tensor(columns).argsort()

    @property
    def rounds(self) -> bool:
        """Whether rows come back as they will be stored, see `TableGroup`."""
        return any(group.rounds for group in self.groups)

    def round_rows(self, rounds: bool) -> None:
        """Raises NarrowcastError where what will be stored is not known before training has ended."""
        if rounds:
            demand_roundable(self.plan)
        for module in self.groups:
            group = cast(TableGroup, module)
            group.rounds = rounds and bool((group.bits_P < 32).any())

    def forward(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        ids_BF = ids_BF.long()
        valid_BL = valid_elements(sequences)
        categorical, rows_BLD = [], {}
        for group, lookup in zip(self.groups, self._lookups, strict=True):
            wanted = lookup.wanted(ids_BF, sequences, valid_BL)
            rows = group(wanted)
            categorical.append(rows[0])
            for name, rows_n1D in zip(lookup.sequences, rows[1:], strict=True):
                rows_BLD[name] = padded(rows_n1D.squeeze(1), valid_BL[name])
        rows_BFD = categorical[0] if len(categorical) == 1 else torch.cat(categorical, dim=1)
        if self._order is not None:
            rows_BFD = rows_BFD[:, self._order.to(rows_BFD.device)]
        return Found(rows_BFD, rows_BLD, valid_BL)


def table_generator(layout: Layout, table: str, seed: int) -> torch.Generator:
    """What draws a table's initial values in a model of `seed`."""
    return torch.Generator().manual_seed(seed * 1_000_003 + list(layout.table_rows).index(table))


class GroupLookup:
    """Which fields read a group's tables: of a batch, the ids that they look up and the table of each."""

    def __init__(self, layout: Layout, names: list[str]) -> None:
        index = {name: i for i, name in enumerate(names)}
        self.columns = [i for i, field in enumerate(layout.categorical) if layout.table_of[field] in index]
        self.sequences = {
            field: index[layout.table_of[field]] for field in layout.sequences if layout.table_of[field] in index
        }
        self.reads_all = len(self.columns) == len(layout.categorical)
        self.table_F = torch.tensor([index[layout.table_of[layout.categorical[i]]] for i in self.columns]).long()

    def wanted(
        self, ids_BF: Tensor, sequences: Mapping[str, Tensor], valid_BL: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """First the categorical fields' ids (B x their number), then each sequence's without padding (n x 1)."""
        device = ids_BF.device
        columns_BF = ids_BF if self.reads_all else ids_BF[:, self.columns]
        found = [(columns_BF, self.table_F.to(device))]
        for field, table in self.sequences.items():
            ids_n1 = sequences[field][valid_BL[field]].long().unsqueeze(1)
            found.append((ids_n1, torch.tensor([table], device=device)))
        return found


def look_up(
    layout: Layout, tables: Mapping[str, Callable[[Tensor], Tensor]], ids_BF: Tensor, sequences: Mapping[str, Tensor]
) -> Found:
    """Look every field up in its table. What `EmbeddingLayer` does, for tables of any kind.

    A table maps ids (any shape, int64, all >= 0) to one vector of D values each. A sequence of one row, 1 x L, is
    looked up as one.
    """
    columns_BF = ids_BF.long()
    found = [tables[layout.table_of[name]](columns_BF[:, i]) for i, name in enumerate(layout.categorical)]
    valid_BL = valid_elements(sequences)
    rows_BLD = {
        name: padded(tables[layout.table_of[name]](ids_BL[valid_BL[name]].long()), valid_BL[name])
        for name, ids_BL in sequences.items()
    }
    if found:
        return Found(torch.stack(found, dim=1), rows_BLD, valid_BL)
    width = next(iter(rows_BLD.values())).shape[-1]
    return Found(torch.zeros(len(ids_BF), 0, width, device=ids_BF.device), rows_BLD, valid_BL)


def padded(rows_nD: Tensor, valid_BL: Tensor) -> Tensor:
    """The rows of a sequence's elements in their places, B x L x D; zeros at the padding, which is never looked up."""
    return rows_nD.new_zeros(*valid_BL.shape, rows_nD.shape[1]).index_put((valid_BL,), rows_nD)
