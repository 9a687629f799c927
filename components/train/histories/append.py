"""Append: a transformer in which the candidate reads the history; one history pass for all (arXiv 2412.06924).

That candidates share the pass is after M-FALCON (arXiv 2402.17152).

Shape letters: B users, L history items, M candidates, D embedding width, W model width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.attention import Blocks, RecencyPositions, TransformerConfig
from narrowcast.components.train.histories.registry import HistoryState, register


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendConfig(TransformerConfig):
    name: ClassVar[str] = "append"


@register(AppendConfig)
class Append(nn.Module):
    """Queries are the history and the candidates; keys and values are the history alone.

    So no item of the history reads a candidate, no candidate reads another, and all candidates stand at one position:
    M candidates scored together have the tokens of M scored one by one. The candidate's output is the token. An empty
    history attends to nothing, with zeros as the answer: the token is the candidate's own stream through the
    feed-forward parts. Blocks, positions and widths are our choices.
    """

    def __init__(self, config: AppendConfig, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, config.model_width)
        self.positions = RecencyPositions(config)
        self.candidate_position_W = nn.Parameter(torch.randn(config.model_width) * 0.02)
        self.blocks = Blocks(config)
        self.leave = nn.Sequential(nn.LayerNorm(config.model_width), nn.Linear(config.model_width, width))

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        return self.score(self.encode(rows_BLD, valid_BL), candidate_BD.unsqueeze(1)).squeeze(1)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        """The history's keys and values in every block, whatever the candidates."""
        stream_BLW = self.enter(rows_BLD) + self.positions(valid_BL)
        keys_values = []
        for i, block in enumerate(self.blocks):
            keys_values.append(block.keys_values(stream_BLW))
            if i + 1 < len(self.blocks):
                stream_BLW = block(stream_BLW, keys_values[-1], valid_BL)
        return HistoryState(valid_BL=valid_BL, by_item=tuple(keys_values))

    def score(self, state: HistoryState, candidates_BMD: Tensor) -> Tensor:
        """Tokens, B x M x D, of M candidates a user; the attention scores are M x L a head, in every block."""
        stream_BMW = self.enter(candidates_BMD) + self.candidate_position_W
        for block, keys_values_BLX in zip(self.blocks, state.by_item, strict=True):
            stream_BMW = block(stream_BMW, keys_values_BLX, state.valid_BL)
        tokens_BMD: Tensor = self.leave(stream_BMW)
        return tokens_BMD
