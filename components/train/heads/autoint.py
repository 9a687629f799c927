"""AutoInt: multi-head self-attention between all inputs, with a deep network beside it (arXiv 1810.11921, section 4).

Shape letters: B rows, T tokens, D width, N dense features, V = T + N vectors, W attention width, H heads, A = W / H.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoIntConfig:
    """`num_layers` of attention, whose outputs are `attention_width` wide over all `num_heads`.

    `deep`: with a deep network of widths `hidden` beside them, which the paper calls AutoInt+; without it `hidden` and
    `dropout` are without effect.
    """

    name: ClassVar[str] = "autoint"
    hidden: tuple[int, ...]
    dropout: float
    num_layers: int = 3
    num_heads: int = 2
    attention_width: int = 64
    deep: bool = True

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "attention_width"):
            if getattr(self, name) < 1:
                raise NarrowcastError(f"{name} of autoint is {getattr(self, name)}: must be at least 1")
        if self.attention_width % self.num_heads:
            raise NarrowcastError(
                f"attention_width of autoint is {self.attention_width}, which {self.num_heads} heads cannot share: "
                "choose a multiple of num_heads"
            )


class InteractingLayer(nn.Module):
    """ReLU(heads' mixtures side by side + W_res e) of every vector e (section 4.4).

    A head's mixture is the sum of W_value e_k weighted with the softmax over k of <W_query e, W_key e_k>, not scaled.
    """

    def __init__(self, num_inputs: int, attention_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value_residual = nn.Linear(num_inputs, 4 * attention_width, bias=False)

    def forward(self, vectors_BVD: Tensor) -> Tensor:
        """B x V x W."""
        *projected, residual_BVW = self.query_key_value_residual(vectors_BVD).chunk(4, dim=2)
        query_BHVA, key_BHVA, value_BHVA = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mixed_BHVA = nn.functional.scaled_dot_product_attention(query_BHVA, key_BHVA, value_BHVA, scale=1.0)
        return (mixed_BHVA.transpose(1, 2).flatten(2) + residual_BVW).relu()


@register(AutoIntConfig)
class AutoInt(nn.Module):
    """logit = linear(all vectors after the last layer) + deep network on all vectors before the first.

    A dense feature's vector is a learned one times its value. Where there is one input alone it can only attend to
    itself.
    """

    def __init__(self, config: AutoIntConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        num_vectors = num_tokens + num_dense
        self.dense_ND = nn.Parameter(torch.randn(num_dense, width) / width**0.5) if num_dense else None
        widths = [width] + [config.attention_width] * config.num_layers
        self.layers = nn.Sequential(
            *(InteractingLayer(num_inputs, config.attention_width, config.num_heads) for num_inputs in widths[:-1])
        )
        self.output = nn.Linear(num_vectors * config.attention_width, 1)
        self.deep = mlp(num_vectors * width, config.hidden, config.dropout, num_outputs=1) if config.deep else None

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        vectors_BVD = tokens_BTD
        if self.dense_ND is not None:
            vectors_BVD = torch.cat([tokens_BTD, dense_BN.unsqueeze(2) * self.dense_ND], dim=1)
        logit_B = self.output(self.layers(vectors_BVD).flatten(1)).squeeze(1)
        return logit_B if self.deep is None else logit_B + self.deep(vectors_BVD.flatten(1)).squeeze(1)
