"""None: zeros in place of the history, the control that shows what a history is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.registry import HistoryState, register


@dataclass(frozen=True, kw_only=True, slots=True)
class NoneConfig:
    name: ClassVar[str] = "none"


@register(NoneConfig)
class NoHistory(nn.Module):
    """The token stays, as zeros, so that the head has the same shape as with a history. No parameters."""

    def __init__(self, config: NoneConfig, width: int) -> None:
        super().__init__()

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        return torch.zeros_like(candidate_BD)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        return HistoryState(valid_BL=valid_BL)

    def score(self, parts: Sequence[tuple[HistoryState, Tensor]]) -> list[Tensor]:
        return [torch.zeros_like(candidates_BMD) for _, candidates_BMD in parts]
