"""DIN: a sum of the history's items, weighted by a network of item and candidate (arXiv 1706.06978, section 4.3).

Shape letters: B users, L history items, M candidates, D embedding width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.registry import HistoryState, register
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
        return self.score(self.encode(rows_BLD, valid_BL), candidate_BD.unsqueeze(1)).squeeze(1)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        """The items themselves: the activation unit reads every pair of candidate and item."""
        return HistoryState(valid_BL=valid_BL, by_item=(rows_BLD,))

    def score(self, state: HistoryState, candidates_BMD: Tensor) -> Tensor:
        (rows_BLD,) = state.by_item
        shape = (*candidates_BMD.shape[:2], *rows_BLD.shape[1:])
        rows_BMLD = rows_BLD.unsqueeze(1).expand(shape)
        candidates_BMLD = candidates_BMD.unsqueeze(2).expand(shape)
        pairs = [rows_BMLD, candidates_BMLD, rows_BMLD * candidates_BMLD, rows_BMLD - candidates_BMLD]
        weights_BML1 = self.unit(torch.cat(pairs, dim=-1)) * state.valid_BL[:, None, :, None]
        return (weights_BML1 * rows_BMLD).sum(2)
