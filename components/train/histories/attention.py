"""What the transformer encoders share: settings, positions, and a block whose keys and values are the history alone.

Shape letters: B users, L history items, Q queries, W model width, H heads, d = W / H, X = 2 W.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from narrowcast.errors import NarrowcastError

FEED_FORWARD = 2
"""Inner width of a block's feed-forward part, in model widths; our choice."""
TOKEN_STD = 0.01
"""Deviation of a token's values before training, about; our choice: that of the embedding rows beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """`num_layers` blocks of `num_heads` heads at `model_width`; items older than `max_positions` share one position.

    Raises NarrowcastError for a setting under 1 and for a width that the heads cannot share equally.
    """

    num_layers: int = 2
    num_heads: int = 2
    model_width: int = 32
    max_positions: int = 64

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "model_width", "max_positions"):
            if getattr(self, name) < 1:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.model_width % self.num_heads:
            raise NarrowcastError(
                f"model_width is {self.model_width}, which {self.num_heads} heads cannot share: choose a multiple of "
                "num_heads"
            )


class RecencyPositions(nn.Module):
    """A learned vector by how many newer items the history holds, so that pads and length leave the newest item's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.last = config.max_positions - 1
        self.vectors = nn.Embedding(config.max_positions, config.model_width)
        nn.init.normal_(self.vectors.weight, std=0.02)

    def forward(self, valid_BL: Tensor) -> Tensor:
        """B x L x W; what stands at a pad is never read."""
        newer_BL = valid_BL.sum(1, keepdim=True) - valid_BL.cumsum(1)
        vectors_BLW: Tensor = self.vectors(newer_BL.clamp(max=self.last))
        return vectors_BLW


class Block(nn.Module):
    """Attention to the history, then a feed-forward part, each on the normalised stream and added to it.

    LayerNorm stands before either part and there is no dropout (our choices); no row depends on the batch's others.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.model_width
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, FEED_FORWARD * width),
            nn.ReLU(),
            nn.Linear(FEED_FORWARD * width, width),
        )

    def keys_values(self, history_BLW: Tensor) -> Tensor:
        """What queries attend to in this block: an item's keys, head by head, then its values; B x L x X."""
        keys_values_BLX: Tensor = self.key_value(self.norm(history_BLW))
        return keys_values_BLX

    def forward(self, stream_BQW: Tensor, keys_values_BLX: Tensor, valid_BL: Tensor | None) -> Tensor:
        """The stream after this block, B x Q x W."""
        return self.add(stream_BQW, self.attend(self.queries(stream_BQW), keys_values_BLX, valid_BL))

    def queries(self, stream: Tensor) -> Tensor:
        """What streams (any shape that ends in W) ask for; the same shape."""
        queries: Tensor = self.query(self.norm(stream))
        return queries

    def attend(self, queries_BQW: Tensor, keys_values_BLX: Tensor, valid_BL: Tensor | None) -> Tensor:
        """What the queries find in their history, B x Q x W."""
        keys_BLW, values_BLW = keys_values_BLX.chunk(2, dim=-1)
        found_BHQd = attend(self._heads(queries_BQW), self._heads(keys_BLW), self._heads(values_BLW), valid_BL)
        return found_BHQd.transpose(1, 2).flatten(2)

    def add(self, stream: Tensor, found: Tensor) -> Tensor:
        """The stream after this block, from what its queries found; any shape that ends in W."""
        stream = stream + self.out(found)
        return stream + self.feed_forward(stream)

    def _heads(self, values_BQW: Tensor) -> Tensor:
        return values_BQW.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Blocks(nn.ModuleList):
    """The blocks that a config asks for, first to last."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(Block(config) for _ in range(config.num_layers))

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())


def entrance(width: int, config: TransformerConfig) -> nn.Sequential:
    """Embedding rows into the model's width, by their direction: rows start so small that positions would drown them.

    Our choice, with a norm that leaves the mean, as rows may be one value wide.
    """
    return nn.Sequential(nn.RMSNorm(width, eps=1e-6), nn.Linear(width, config.model_width))


def to_token(config: TransformerConfig, width: int) -> nn.Linear:
    """From a normalised stream to a token, which starts as small as the embedding rows beside it."""
    linear = nn.Linear(config.model_width, width)
    nn.init.normal_(linear.weight, std=TOKEN_STD / config.model_width**0.5)
    nn.init.zeros_(linear.bias)
    return linear


def attend(queries_BHQd: Tensor, keys_BHLd: Tensor, values_BHLd: Tensor, valid_BL: Tensor | None) -> Tensor:
    """Scaled dot-product attention of every query to the valid items, B x H x Q x d; zeros for an empty history.

    Without `valid_BL` all items are valid, which spares the mask.
    """
    if valid_BL is None:
        return nn.functional.scaled_dot_product_attention(queries_BHQd, keys_BHLd, values_BHLd)
    filled_B1 = valid_BL.any(1, keepdim=True)
    seen_BL = valid_BL | ~filled_B1
    found_BHQd = nn.functional.scaled_dot_product_attention(
        queries_BHQd, keys_BHLd, values_BHLd, attn_mask=seen_BL[:, None, None]
    )
    return torch.where(filled_B1[:, :, None, None], found_BHQd, 0.0)
