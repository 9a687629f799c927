"""MaskNet: every layer's inputs multiplied with a mask computed from the whole row (arXiv 2102.07619, section 3).

Shape letters: B rows, T tokens, D width, N dense features, X = T D + N inputs, H a block's inputs, U its outputs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskNetConfig:
    """`num_blocks` mask blocks of `block_width` outputs, side by side (`parallel`) or one on the other (`serial`).

    `reduction`: width of a mask's hidden layer over the width of the mask. `hidden`: widths of the layers on parallel
    blocks; serial blocks have none on them. `dropout`: of the blocks' and these layers' outputs.
    """

    name: ClassVar[str] = "masknet"
    hidden: tuple[int, ...]
    dropout: float
    num_blocks: int = 3
    block_width: int = 64
    reduction: float = 1.0
    structure: Literal["parallel", "serial"] = "parallel"

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_width"):
            if getattr(self, name) < 1:
                raise NarrowcastError(f"{name} of masknet is {getattr(self, name)}: must be at least 1")
        if not 0 < self.reduction < float("inf"):
            raise NarrowcastError(f"reduction of masknet is {self.reduction}: must be a positive number")


class MaskBlock(nn.Module):
    """ReLU(LayerNorm(W (mask * h))), with mask = W2 ReLU(W1 x + b1) + b2 of the row x."""

    def __init__(self, num_instance: int, num_inputs: int, config: MaskNetConfig) -> None:
        super().__init__()
        num_aggregate = max(1, round(config.reduction * num_inputs))
        self.mask = mlp(num_instance, (num_aggregate,), 0.0, num_outputs=num_inputs)
        self.linear = nn.Linear(num_inputs, config.block_width, bias=False)
        self.norm = nn.LayerNorm(config.block_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, instance_BX: Tensor, hidden_BH: Tensor) -> Tensor:
        """B x U."""
        masked_BH = self.mask(instance_BX) * hidden_BH
        return self.dropout(self.norm(self.linear(masked_BH)).relu())


@register(MaskNetConfig)
class MaskNet(nn.Module):
    """Blocks on the normalised embeddings, all masked by the row as it came in; then a linear layer or a network.

    Our choices: dense features enter as they are, not as a vector times the value, whose LayerNorm would keep the sign
    alone; parallel blocks share the embeddings' normalisation.
    """

    def __init__(self, config: MaskNetConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        num_inputs = num_tokens * width + num_dense
        self.serial = config.structure == "serial"
        self.gain_TD = nn.Parameter(torch.ones(num_tokens, width))
        self.shift_TD = nn.Parameter(torch.zeros(num_tokens, width))
        below = [config.block_width if self.serial and i else num_inputs for i in range(config.num_blocks)]
        self.blocks = nn.ModuleList(MaskBlock(num_inputs, num_hidden, config) for num_hidden in below)
        if self.serial:
            self.top = mlp(config.block_width, (), 0.0, num_outputs=1)
        else:
            self.top = mlp(config.num_blocks * config.block_width, config.hidden, config.dropout, num_outputs=1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        normalised_BTD = nn.functional.layer_norm(tokens_BTD, tokens_BTD.shape[2:]) * self.gain_TD + self.shift_TD
        instance_BX, hidden_BH = (torch.cat([x.flatten(1), dense_BN], dim=1) for x in (tokens_BTD, normalised_BTD))
        if self.serial:
            for block in self.blocks:
                hidden_BH = block(instance_BX, hidden_BH)
        else:
            hidden_BH = torch.cat([block(instance_BX, hidden_BH) for block in self.blocks], dim=1)
        return self.top(hidden_BH).squeeze(1)
