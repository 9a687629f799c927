"""DCNv2: explicit crosses of all inputs, degree by degree, with a deep network (arXiv 2008.13535, section 3).

Shape letters: B rows, T tokens, D width, N dense features, X = T D + N inputs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNv2Config:
    """`hidden`, `dropout`: the deep network's; it stands beside the cross layers (`parallel`) or on them (`stacked`).

    `num_cross` layers; `rank` of their matrices, 0 for full rank.
    """

    name: ClassVar[str] = "dcnv2"
    hidden: tuple[int, ...]
    dropout: float
    num_cross: int = 3
    rank: int = 0
    structure: Literal["parallel", "stacked"] = "parallel"

    def __post_init__(self) -> None:
        for name, least in (("num_cross", 1), ("rank", 0)):
            if getattr(self, name) < least:
                raise NarrowcastError(f"{name} of dcnv2 is {getattr(self, name)}: must be at least {least}")


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l, with W = U V^T, U and V of `rank` columns, where there is a rank."""

    def __init__(self, num_inputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(num_inputs, rank, bias=False) if rank else nn.Identity()
        self.up = nn.Linear(rank or num_inputs, num_inputs)

    def forward(self, first_BX: Tensor, last_BX: Tensor) -> Tensor:
        return torch.addcmul(last_BX, first_BX, self.up(self.down(last_BX)))


@register(DCNv2Config)
class DCNv2(nn.Module):
    """logit = linear(cross network beside deep network), or linear(deep network on cross network).

    x_0 is all embeddings and the dense features as they are. The mixture of low-rank experts is not here.
    """

    def __init__(self, config: DCNv2Config, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        num_inputs = num_tokens * width + num_dense
        self.stacked = config.structure == "stacked"
        self.crosses = nn.ModuleList(CrossLayer(num_inputs, config.rank) for _ in range(config.num_cross))
        self.deep = mlp(num_inputs, config.hidden, config.dropout)
        self.output = nn.Linear(config.hidden[-1] + (0 if self.stacked else num_inputs), 1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        first_BX = torch.cat([tokens_BTD.flatten(1), dense_BN], dim=1)
        crossed_BX = first_BX
        for cross in self.crosses:
            crossed_BX = cross(first_BX, crossed_BX)
        if self.stacked:
            return self.output(self.deep(crossed_BX)).squeeze(1)
        return self.output(torch.cat([crossed_BX, self.deep(first_BX)], dim=1)).squeeze(1)
