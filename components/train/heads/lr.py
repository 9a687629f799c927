"""LR: logistic regression on all inputs, the control without interactions (Richardson et al. 2007)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register


@dataclass(frozen=True, kw_only=True, slots=True)
class LRConfig:
    """`hidden` and `dropout` are without effect: there are no hidden layers."""

    name: ClassVar[str] = "lr"
    hidden: tuple[int, ...]
    dropout: float


@register(LRConfig)
class LR(nn.Module):
    """logit = sum of all ids' weights + linear term of the dense features + bias.

    An id's weight is the sum of its embedding (our choice): one free number an id at any width D, so the functions are
    the same, and at D = 1 this is logistic regression as written. A sequence's weight is that of its token.
    """

    def __init__(self, config: LRConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.linear = nn.Linear(num_dense, 1, bias=False) if num_dense else None

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        logit_B = tokens_BTD.sum((1, 2)) + self.bias
        return logit_B if self.linear is None else logit_B + self.linear(dense_BN).squeeze(1)
