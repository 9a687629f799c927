"""DeepFM: a factorisation machine and a deep network on the same embeddings (arXiv 1703.04247, section 2.1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFMConfig:
    """`hidden`: widths of the deep network's layers; `dropout`: share of their outputs dropped in training."""

    name: ClassVar[str] = "deepfm"
    hidden: tuple[int, ...]
    dropout: float


def pairwise_products(tokens_BTD: Tensor) -> Tensor:
    """Sum over all pairs i < j of the dot products of tokens i and j: half of (sum squared less squares summed); B."""
    square_of_sum_BD = tokens_BTD.sum(1).square()
    sum_of_squares_BD = tokens_BTD.square().sum(1)
    return 0.5 * (square_of_sum_BD - sum_of_squares_BD).sum(1)


@register(DeepFMConfig)
class DeepFM(nn.Module):
    """logit = first order + pairwise products + deep network.

    Our choices: the first-order weight of an id is a learned vector per field times the id's embedding (as FwFM has it,
    arXiv 1806.03514, section 3.3), so that nothing per id lies outside the embedding tables; dense features have a
    linear term and enter the deep network, not the pairwise products.
    """

    def __init__(self, config: DeepFMConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        self.first_order_TD = nn.Parameter(torch.randn(num_tokens, width) / (num_tokens * width) ** 0.5)
        self.linear = nn.Linear(num_dense, 1) if num_dense else None
        self.deep = mlp(num_tokens * width + num_dense, config.hidden, config.dropout, num_outputs=1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        logit_B = (tokens_BTD * self.first_order_TD).sum((1, 2)) + pairwise_products(tokens_BTD)
        logit_B = logit_B + self.deep(torch.cat([tokens_BTD.flatten(1), dense_BN], dim=1)).squeeze(1)
        return logit_B if self.linear is None else logit_B + self.linear(dense_BN).squeeze(1)
