"""The lookup of a packed model: every categorical field and sequence of a batch to its float32 rows."""

from collections.abc import Mapping

from torch import Tensor, nn

from narrowcast.components.compact.packed_table import PackedTable
from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.embedding import PREFIX, look_up
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.scorer import Found


class PackedLookup(nn.Module):
    """All tables of a packed model, from `tensors` by "<table>.<key>" as they are stored."""

    def __init__(self, layout: Layout, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layout = layout
        self.named_tables = nn.ModuleDict()
        for name in layout.table_rows:
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            self.named_tables[PREFIX + name] = PackedTable(plan.table(name), plan.width, own)

    def forward(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        """What `ids_BF` (int, all >= 0) and `sequences` (by field, each B x L or 1 x L for all rows) look up."""
        tables = {key.removeprefix(PREFIX): table for key, table in self.named_tables.items()}
        return look_up(self.layout, tables, ids_BF, sequences)
