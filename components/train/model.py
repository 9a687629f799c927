"""The click-through model: an embedding layer built from a plan, and a head."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.train.embedding import EmbeddingLayer
from narrowcast.components.train.heads import HeadConfig, build_head, head_config
from narrowcast.components.train.plan import Plan
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A backbone by name, the widths of its hidden layers, and the share of their outputs dropped in training."""

    backbone: str = "deepfm"
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise NarrowcastError(f"hidden is {self.hidden}: give at least one layer width, each at least 1")
        if not 0 <= self.dropout < 1:
            raise NarrowcastError(f"dropout is {self.dropout}: must be at least 0 and less than 1")
        _ = self.head

    @property
    def head(self) -> HeadConfig:
        """The head's own config. Raises NarrowcastError for an unknown backbone."""
        return head_config(self.backbone, hidden=self.hidden, dropout=self.dropout)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelConfig":
        return cls(**{**data, "hidden": tuple(data["hidden"])})


class CTRModel(nn.Module):
    """`head(embedding(ids, sequences), dense)`.

    Initial values follow from `seed` alone: the head's do not change with the plan, and a table's only as
    `EmbeddingTable` says.
    """

    def __init__(self, layout: Layout, plan: Plan, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.layout = layout
        self.plan = plan
        self.config = config
        self.embedding = EmbeddingLayer(layout, plan, seed)
        self.head = seeded_head(layout, plan.width, config, seed)

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B. `sequences` by field, each B x L."""
        return self.head(self.embedding(ids_BF, sequences), dense_BN)


def seeded_head(layout: Layout, width: int, config: ModelConfig, seed: int) -> nn.Module:
    """The head for `layout`, drawn from `seed` without touching torch's default generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        num_tokens = len(layout.categorical) + len(layout.sequences)
        return build_head(config.head, num_tokens, width, len(layout.numeric))


def to_tensors(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A batch as the arguments of a model's `forward`: `model(*to_tensors(batch))`."""
    return (
        torch.tensor(batch.ids_BF, device=device),
        torch.tensor(batch.dense_BN, device=device),
        {name: torch.tensor(ids_BL, device=device) for name, ids_BL in batch.sequences.items()},
    )
