"""Mean: the average of the history's items, whatever the candidate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from narrowcast.components.train.histories.registry import HistoryState, register


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanConfig:
    name: ClassVar[str] = "mean"


def masked_mean(rows_BLD: Tensor, valid_BL: Tensor) -> Tensor:
    """The mean over the valid elements, B x D; zeros where there are none."""
    valid_BL1 = valid_BL.unsqueeze(-1)
    return (rows_BLD * valid_BL1).sum(1) / valid_BL1.sum(1).clamp(min=1)


@register(MeanConfig)
class Mean(nn.Module):
    """An empty history gives zeros. No parameters."""

    def __init__(self, config: MeanConfig, width: int) -> None:
        super().__init__()

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        return masked_mean(rows_BLD, valid_BL)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        return HistoryState(valid_BL=valid_BL, by_user=(masked_mean(rows_BLD, valid_BL),))

    def score(self, parts: Sequence[tuple[HistoryState, Tensor]]) -> list[Tensor]:
        return [state.by_user[0].unsqueeze(1).expand_as(candidates_BMD) for state, candidates_BMD in parts]
