"""AdRec: a transformer over the fields whose attention masks irrelevant pairs, after Ad-Rec (arXiv 2308.14902).

Shape letters: B rows, T tokens, D width, N numeric fields, V tokens with the dense one, A width inside the blocks,
H heads, C values of a head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.masks import LearnedMask, MaskConfig, build_mask, masked_softmax
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError

IDENTITY_STD = 0.01
"""Of a field's identity vector at the start: no larger than the embeddings it is added to."""
LEAST_WIDTH = 8
"""Of the blocks: a LayerNorm over two values leaves no more than their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdRecConfig:
    """`hidden`: widths of the top network's layers; `dropout`: share of its and the blocks' inner units dropped in
    training; `bottom`: widths of the dense features' layers before the dense token.

    `mask`: none, causal, learned or topk, with `top_k` the tokens that each token reads under topk, and `mask_penalty`
    and `mask_logit` the weight of the mean open probability in the loss and the logits' start under learned.
    `attention_width` is A, the tokens' width inside the blocks: by default D, or 8 where D is less, rounded up to a
    multiple of `num_heads`; tokens of another width are lifted to it. A block's feed-forward network has `feed_forward`
    times A units.
    """

    name: ClassVar[str] = "adrec"
    hidden: tuple[int, ...]
    dropout: float
    bottom: tuple[int, ...] = (64,)
    mask: str = "learned"
    num_layers: int = 2
    num_heads: int = 2
    feed_forward: int = 2
    attention_width: int | None = None
    top_k: int = 8
    mask_penalty: float = 0.003
    mask_logit: float = 0.02

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise NarrowcastError(f"adrec's {name} is {getattr(self, name)}: must be at least 1")
        if min(self.bottom, default=1) < 1:
            raise NarrowcastError(f"adrec's bottom is {self.bottom}: every layer's width must be at least 1")
        width = self.attention_width
        if width is not None and (width < 1 or width % self.num_heads):
            raise NarrowcastError(
                f"adrec's attention_width is {width}: give a multiple of num_heads ({self.num_heads}), or leave it out"
            )
        _ = self.mask_config

    @property
    def mask_config(self) -> MaskConfig:
        return MaskConfig(kind=self.mask, top_k=self.top_k, penalty=self.mask_penalty, initial_logit=self.mask_logit)

    def block_width(self, width: int) -> int:
        """A, for embeddings of `width`."""
        return self.attention_width or -(-max(width, LEAST_WIDTH) // self.num_heads) * self.num_heads


class MaskedAttention(nn.Module):
    """Multi-head attention (arXiv 1706.03762, section 3.2) among the pairs that the mask leaves open."""

    def __init__(self, config: AdRecConfig, num_tokens: int, width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mask = build_mask(config.mask_config, self.num_heads, num_tokens)

    def forward(self, tokens_BVA: Tensor) -> Tensor:
        """B x V x A."""
        stacked = self.query_key_value(tokens_BVA).unflatten(-1, (3, self.num_heads, -1))
        query_BHVC, key_BHVC, value_BHVC = stacked.permute(2, 0, 3, 1, 4)
        scores_BHVV = query_BHVC @ key_BHVC.transpose(-1, -2) / query_BHVC.shape[-1] ** 0.5
        attention_BHVV = masked_softmax(scores_BHVV, self.mask(scores_BHVV))
        return self.output((attention_BHVV @ value_BHVC).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Masked attention, then a feed-forward network on each token; each with a residual and a LayerNorm after it."""

    def __init__(self, config: AdRecConfig, num_tokens: int, width: int) -> None:
        super().__init__()
        self.attention = MaskedAttention(config, num_tokens, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = mlp(width, (config.feed_forward * width,), config.dropout, num_outputs=width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, tokens_BVA: Tensor) -> Tensor:
        """B x V x A."""
        tokens_BVA = self.attention_norm(tokens_BVA + self.attention(tokens_BVA))
        return self.feed_forward_norm(tokens_BVA + self.feed_forward(tokens_BVA))


@register(AdRecConfig)
class AdRec(nn.Module):
    """Dense features pass a bottom network to one token before the fields' tokens; all pass the blocks, and with the
    dense features beside them the top network to one logit.

    The paper establishes: dense and sparse inputs processed apart and then joined, masked multi-head attention, a
    LayerNorm after it. The rest is our choice: a learned vector that tells each token its field, the masks, the block's
    feed-forward network, depth and widths. Without dense features there is no dense token.
    """

    def __init__(self, config: AdRecConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        block_width = config.block_width(width)
        self.lift = nn.Linear(width, block_width) if block_width != width else nn.Identity()
        self.bottom = mlp(num_dense, config.bottom, 0.0, num_outputs=block_width) if num_dense else None
        num_tokens += self.bottom is not None
        self.identity_VA = nn.Parameter(torch.randn(num_tokens, block_width) * IDENTITY_STD)
        self.blocks = nn.Sequential(*(Block(config, num_tokens, block_width) for _ in range(config.num_layers)))
        self.top = mlp(num_tokens * block_width + num_dense, config.hidden, config.dropout, num_outputs=1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        crossed_BVA = self.blocks(self.inputs(tokens_BTD, dense_BN))
        return self.top(torch.cat([crossed_BVA.flatten(1), dense_BN], dim=1)).squeeze(1)

    def inputs(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """What enters the first block: the dense token, if any, before the fields' tokens; B x V x A."""
        tokens_BVA = self.lift(tokens_BTD)
        if self.bottom is not None:
            tokens_BVA = torch.cat([self.bottom(dense_BN).unsqueeze(1), tokens_BVA], dim=1)
        return tokens_BVA + self.identity_VA

    def penalty(self) -> Tensor:
        """What the learned masks add to the training loss, summed over the blocks; 0 for the other masks."""
        terms = [mask.penalty() for mask in self.modules() if isinstance(mask, LearnedMask)]
        return torch.stack(terms).sum() if terms else self.identity_VA.new_zeros(())
