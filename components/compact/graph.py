"""The packed model as a graph of fixed operators, for export: no shape in it depends on the values of an input.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length, D width; S rows of a sequence input, 1
or B; M = B / S rows that a sequence's row stands for.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from narrowcast.components.compact.graph_table import GraphTable
from narrowcast.components.compact.lookup import tensors_of
from narrowcast.components.data.encoded import Layout
from narrowcast.components.data.schema import HISTORY
from narrowcast.components.train.embedding import PREFIX
from narrowcast.components.train.histories import Amortised
from narrowcast.components.train.histories.mean import masked_mean
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.scorer import Scorer


class GraphNetwork(nn.Module):
    """What `PackedNetwork` computes, and the sigmoid of it; `tensors` are the packed tables as they are stored."""

    def __init__(self, layout: Layout, plan: Plan, scorer: Scorer, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layout = layout
        self.scorer = scorer
        self.named_tables = nn.ModuleDict()
        for name in layout.table_rows:
            self.named_tables[PREFIX + name] = GraphTable(plan.table(name), plan.width, tensors_of(name, tensors))

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Probabilities, B, float32. Ids are int64, `sequences` by field, each S x L with -1 as padding at the end."""
        logit_B: Tensor = self.scorer.head(self.tokens(ids_BF, sequences), dense_BN)
        return logit_B.sigmoid()

    def tokens(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """B x tokens x D, as `Scorer` orders them."""
        tokens = [self.rows(name, ids_BF[:, i]) for i, name in enumerate(self.layout.categorical)]
        for name in self.layout.sequences:
            valid_SL = sequences[name] >= 0
            rows_SLD = torch.where(valid_SL.unsqueeze(-1), self.rows(name, sequences[name]), 0.0)
            if self.scorer.history is not None and name == HISTORY:
                candidate_BD = tokens[self.layout.categorical.index(self.layout.table_of[HISTORY])]
                tokens.append(self.history_tokens(rows_SLD, valid_SL, candidate_BD))
            else:
                tokens.append(for_all(masked_mean(rows_SLD, valid_SL), ids_BF.shape[0]))
        return torch.stack(tokens, dim=1)

    def rows(self, field: str, ids: Tensor) -> Tensor:
        """The rows of a field's ids, ... x D."""
        rows: Tensor = self.named_tables[PREFIX + self.layout.table_of[field]](ids)
        return rows

    def history_tokens(self, rows_SLD: Tensor, valid_SL: Tensor, candidate_BD: Tensor) -> Tensor:
        """B x D. A history is encoded once for all its candidates, where the encoder can."""
        history = self.scorer.history
        if isinstance(history, Amortised):
            candidates_SMD = candidate_BD.reshape(rows_SLD.shape[0], -1, candidate_BD.shape[1])
            (token_SMD,) = history.score([(history.encode(rows_SLD, valid_SL), candidates_SMD)])
            return token_SMD.reshape(candidate_BD.shape)
        assert history is not None
        num_rows = candidate_BD.shape[0]
        token_BD: Tensor = history(for_all(rows_SLD, num_rows), for_all(valid_SL, num_rows), candidate_BD)
        return token_BD


def for_all(values_S: Tensor, num_rows: int) -> Tensor:
    """`num_rows` rows of S: each stands for as many. By index, as whether S is 1 is not known when a graph is made."""
    return values_S.index_select(0, torch.arange(num_rows) // (num_rows // values_S.shape[0]))
