"""Concat: a transformer over history items that are each joined with the candidate (arXiv 2412.06924).

Shape letters: B rows, L history items, D embedding width, W model width.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from narrowcast.components.train.histories.attention import (
    Blocks,
    RecencyPositions,
    TransformerConfig,
    entrance,
    to_token,
)
from narrowcast.components.train.histories.registry import register


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatConfig(TransformerConfig):
    name: ClassVar[str] = "concat"


@register(ConcatConfig)
class Concat(nn.Module):
    """The whole encoding depends on the candidate, so every candidate needs a history pass of its own.

    The token is the mean of the valid items' outputs (our choice); an empty history gives the last layer's bias.
    """

    def __init__(self, config: ConcatConfig, width: int) -> None:
        super().__init__()
        self.enter = entrance(width, config)
        self.enter_candidate = entrance(width, config)
        self.positions = RecencyPositions(config)
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.model_width)
        self.leave = to_token(config, width)

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        # A linear layer on [item, candidate] is the sum of one on either; the candidate's is the same for all items.
        stream_BLW = self.enter(rows_BLD) + self.enter_candidate(candidate_BD).unsqueeze(1) + self.positions(valid_BL)
        for block in self.blocks:
            stream_BLW = block(stream_BLW, block.keys_values(stream_BLW), valid_BL)
        valid_BL1 = valid_BL.unsqueeze(-1)
        pooled_BW = (self.norm(stream_BLW) * valid_BL1).sum(1) / valid_BL1.sum(1).clamp(min=1)
        token_BD: Tensor = self.leave(pooled_BW)
        return token_BD
