"""FM: a factorisation machine, all pairwise products of embeddings (Rendle 2010, section III)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import HeadConfig, register


@dataclass(frozen=True, kw_only=True, slots=True)
class FMConfig:
    """`hidden` and `dropout` are without effect: there are no hidden layers."""

    name: ClassVar[str] = "fm"
    hidden: tuple[int, ...]
    dropout: float


def pairwise_products(tokens_BTD: Tensor) -> Tensor:
    """Sum over all pairs i < j of the dot products of tokens i and j: half of (sum squared less squares summed); B."""
    square_of_sum_BD = tokens_BTD.sum(1).square()
    sum_of_squares_BD = tokens_BTD.square().sum(1)
    return 0.5 * (square_of_sum_BD - sum_of_squares_BD).sum(1)


@register(FMConfig)
class FM(nn.Module):
    """logit = bias + first order + pairwise products.

    Our choices: the first-order weight of an id is a learned vector per field times the id's embedding (as FwFM has it,
    arXiv 1806.03514, section 3.3), so that nothing per id lies outside the embedding tables; dense features have a
    linear term and no products.
    """

    def __init__(self, config: HeadConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.first_order_TD = nn.Parameter(torch.randn(num_tokens, width) / (num_tokens * width) ** 0.5)
        self.linear = nn.Linear(num_dense, 1, bias=False) if num_dense else None

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        logit_B = self.bias + (tokens_BTD * self.first_order_TD).sum((1, 2)) + pairwise_products(tokens_BTD)
        return logit_B if self.linear is None else logit_B + self.linear(dense_BN).squeeze(1)
