"""DeepFM: a factorisation machine and a deep network on the same embeddings (arXiv 1703.04247, section 2.1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.fm import FM
from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFMConfig:
    """`hidden`: widths of the deep network's layers; `dropout`: share of their outputs dropped in training."""

    name: ClassVar[str] = "deepfm"
    hidden: tuple[int, ...]
    dropout: float


@register(DeepFMConfig)
class DeepFM(nn.Module):
    """logit = factorisation machine + deep network.

    Dense features have a linear term and enter the deep network, not the pairwise products (our choice).
    """

    def __init__(self, config: DeepFMConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        self.fm = FM(config, num_tokens, width, num_dense)
        self.deep = mlp(num_tokens * width + num_dense, config.hidden, config.dropout, num_outputs=1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        inputs_BX = torch.cat([tokens_BTD.flatten(1), dense_BN], dim=1)
        return self.fm(tokens_BTD, dense_BN) + self.deep(inputs_BX).squeeze(1)
