"""The click-through model: an embedding layer built from a plan, and a scorer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.embedding import EmbeddingLayer
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.scorer import seeded_scorer


class CTRModel(nn.Module):
    """`scorer(embedding(ids, sequences), dense)`.

    Initial values follow from `seed` alone: the scorer's do not change with the plan, and a table's only as
    `EmbeddingTable` says.
    """

    def __init__(self, layout: Layout, plan: Plan, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.layout = layout
        self.plan = plan
        self.config = config
        self.embedding = EmbeddingLayer(layout, plan, seed, config.init_std)
        self.scorer = seeded_scorer(layout, plan.width, config, seed)

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B. `sequences` by field, each B x L."""
        return self.scorer(self.embedding(ids_BF, sequences), dense_BN)


def to_tensors(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A batch as the arguments of a model's `forward`: `model(*to_tensors(batch))`."""
    return (
        torch.tensor(batch.ids_BF, device=device),
        torch.tensor(batch.dense_BN, device=device),
        {name: torch.tensor(ids_BL, device=device) for name, ids_BL in batch.sequences.items()},
    )
