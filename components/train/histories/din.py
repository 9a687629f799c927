"""DIN: a sum of the history's items, weighted by a network of item and candidate (arXiv 1706.06978, section 4.3).

Shape letters: B rows, L history items, D embedding width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.registry import register
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class DINConfig:
    """`hidden`: units of the activation unit's one layer, the paper's figure 2 has 36."""

    name: ClassVar[str] = "din"
    hidden: int = 36

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise NarrowcastError(f"hidden is {self.hidden}: must be at least 1")


@register(DINConfig)
class DIN(nn.Module):
    """token = sum over items of a(h, c) h, without a softmax over the weights, so that they keep their strength.

    The activation unit a reads [h, c, h * c, h - c] (our choice of the products). PReLU, as the paper's Dice depends on
    the batch. An empty history gives zeros; the order of the items has no effect.
    """

    def __init__(self, config: DINConfig, width: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, config.hidden), nn.PReLU(), nn.Linear(config.hidden, 1))

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        candidate_BLD = candidate_BD.unsqueeze(1).expand_as(rows_BLD)
        pairs = [rows_BLD, candidate_BLD, rows_BLD * candidate_BLD, rows_BLD - candidate_BLD]
        weight_BL1 = self.unit(torch.cat(pairs, dim=-1)) * valid_BL.unsqueeze(-1)
        return (weight_BL1 * rows_BLD).sum(1)
