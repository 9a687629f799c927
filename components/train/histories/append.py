"""Append: a transformer in which the candidate reads the history; one history pass for all (arXiv 2412.06924).

That candidates share the pass is after M-FALCON (arXiv 2402.17152).

Shape letters: B users, L history items, M candidates, N candidates of all users, n of one part, D embedding width, W
model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.histories.attention import (
    Blocks,
    RecencyPositions,
    TransformerConfig,
    entrance,
    to_token,
)
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
        self.enter = entrance(width, config)
        self.positions = RecencyPositions(config)
        self.candidate_position_W = nn.Parameter(torch.randn(config.model_width) * 0.02)
        self.blocks = Blocks(config)
        self.leave = nn.Sequential(nn.LayerNorm(config.model_width), to_token(config, width))

    def forward(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        (token_B1D,) = self.score([(self.encode(rows_BLD, valid_BL), candidate_BD.unsqueeze(1))])
        return token_B1D.squeeze(1)

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        """The history's keys and values in every block, whatever the candidates."""
        stream_BLW = self.enter(rows_BLD) + self.positions(valid_BL)
        keys_values = []
        for i, block in enumerate(self.blocks):
            keys_values.append(block.keys_values(stream_BLW))
            if i + 1 < len(self.blocks):
                stream_BLW = block(stream_BLW, keys_values[-1], valid_BL)
        return HistoryState(valid_BL=valid_BL, by_item=tuple(keys_values))

    def score(self, parts: Sequence[tuple[HistoryState, Tensor]]) -> list[Tensor]:
        """Tokens, B x M x D, of each state's candidates; the attention scores are M x L a head, in every block.

        All parts' candidates pass a layer together but for the attention, where each part has its own history.
        """
        shapes = [candidates_BMD.shape[:2] for _, candidates_BMD in parts]
        sizes = [num_users * num_candidates for num_users, num_candidates in shapes]
        stream_NW = self.enter(torch.cat([candidates_BMD.flatten(0, 1) for _, candidates_BMD in parts]))
        stream_NW = stream_NW + self.candidate_position_W
        for i, block in enumerate(self.blocks):
            queries = block.queries(stream_NW).split(sizes)
            found = [
                block.attend(queries_nW.unflatten(0, shape), state.by_item[i], state.valid_BL).flatten(0, 1)
                for queries_nW, shape, (state, _) in zip(queries, shapes, parts, strict=True)
            ]
            stream_NW = block.add(stream_NW, torch.cat(found))
        tokens = self.leave(stream_NW).split(sizes)
        return [tokens_nD.unflatten(0, shape) for tokens_nD, shape in zip(tokens, shapes, strict=True)]
