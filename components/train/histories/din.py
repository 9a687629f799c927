"""DIN: a sum of the history's items, weighted by a network of item and candidate (arXiv 1706.06978, section 4.3).

Shape letters: B users, L history items, M candidates, D embedding width, U units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.registry import HistoryState, register
from narrowcast.errors import NarrowcastError

MAX_UNITS = 1 << 18
"""Values of the activation unit's layer that are computed at a time, where candidates share a history: 1 MiB of
float32, which stays in a core's cache."""


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
        self.num_units = config.hidden
        self.unit = nn.Sequential(nn.Linear(4 * width, config.hidden), nn.PReLU(), nn.Linear(config.hidden, 1))

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        (token_B1D,) = self.score([(self.encode(rows_BLD, valid_BL), candidate_BD.unsqueeze(1))])
        return token_B1D.squeeze(1)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        """The items themselves: every candidate weighs them anew."""
        return HistoryState(valid_BL=valid_BL, by_item=(rows_BLD,))

    def score(self, parts: Sequence[tuple[HistoryState, Tensor]]) -> list[Tensor]:
        return [self._weighted_sums(state, candidates_BMD) for state, candidates_BMD in parts]

    def _weighted_sums(self, state: HistoryState, candidates_BMD: Tensor) -> Tensor:
        (rows_BLD,) = state.by_item
        if torch.compiler.is_exporting():  # an exported graph is for any sizes, so it has one piece
            weights_BLM = self._weights(rows_BLD, candidates_BMD)
        else:
            num_units = max(1, rows_BLD.shape[:2].numel() * self.num_units)  # of one candidate a user
            some = candidates_BMD.split(max(1, MAX_UNITS // num_units), dim=1)
            weights_BLM = torch.cat([self._weights(rows_BLD, some_BmD) for some_BmD in some], dim=2)
        if state.valid_BL is not None:
            weights_BLM = weights_BLM * state.valid_BL.unsqueeze(2)
        return weights_BLM.transpose(1, 2) @ rows_BLD

    def _weights(self, rows_BLD: Tensor, candidates_BMD: Tensor) -> Tensor:
        """a(h, c) of every pair, B x L x M.

        For one candidate the first layer on [h, c, h * c, h - c] is linear in h, so the candidate has a kernel and a
        bias of its own: a quarter of the products, and no pair is laid out.
        """
        first, prelu, second = cast(tuple[nn.Linear, nn.PReLU, nn.Linear], tuple(self.unit))
        item_UD, candidate_UD, product_UD, difference_UD = first.weight.chunk(4, dim=1)
        kernel_BMUD = item_UD + difference_UD + product_UD * candidates_BMD.unsqueeze(2)
        bias_BMU = nn.functional.linear(candidates_BMD, candidate_UD - difference_UD, first.bias)
        units_BLMU = (rows_BLD @ kernel_BMUD.flatten(1, 2).transpose(1, 2)).unflatten(2, bias_BMU.shape[1:])
        weights_BLM: Tensor = second(prelu(units_BLMU + bias_BMU.unsqueeze(1))).squeeze(3)
        return weights_BLM
