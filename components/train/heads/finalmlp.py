"""FinalMLP: two deep networks on differently gated inputs, fused by a bilinear product (arXiv 2304.00902, section 3).

Shape letters: B rows, T tokens, D width, N dense features, X = T D + N inputs, H heads, P and Q outputs a head of the
first and the second stream.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalMLPConfig:
    """`hidden` and `hidden2`: widths of the first and the second stream's layers; `hidden2` is as `hidden` when empty.

    `num_heads` of the fusion. `context1` and `context2`: which inputs each stream's gate reads, counted from 0 over the
    categorical fields and then the sequences; where empty the gate is the same for all rows. `gate_hidden`: widths of
    the gates' layers.
    """

    name: ClassVar[str] = "finalmlp"
    hidden: tuple[int, ...]
    dropout: float
    hidden2: tuple[int, ...] = ()
    num_heads: int = 1
    context1: tuple[int, ...] = ()
    context2: tuple[int, ...] = ()
    gate_hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        for name in ("hidden2", "gate_hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise NarrowcastError(f"{name} of finalmlp is {getattr(self, name)}: each width must be at least 1")
        if self.num_heads < 1:
            raise NarrowcastError(f"num_heads of finalmlp is {self.num_heads}: must be at least 1")
        for num_outputs in (self.hidden[-1], self.second[-1]):
            if num_outputs % self.num_heads:
                raise NarrowcastError(
                    f"num_heads of finalmlp is {self.num_heads}, which does not divide the stream's last width "
                    f"{num_outputs}: choose a divisor of the last widths of hidden and hidden2"
                )

    @property
    def second(self) -> tuple[int, ...]:
        """Widths of the second stream's layers."""
        return self.hidden2 or self.hidden


class Gate(nn.Module):
    """2 sigmoid(g) times the inputs, g a network of the context.

    Without a context g is learned itself (our choice: a network of a learned vector could give nothing else); it begins
    at 0, where the gate lets everything pass as it is.
    """

    gate_X: Tensor

    def __init__(self, context: tuple[int, ...], hidden: tuple[int, ...], width: int, num_inputs: int) -> None:
        super().__init__()
        self.context = list(context)
        self.network = mlp(len(context) * width, hidden, 0.0, num_outputs=num_inputs) if context else None
        self.register_parameter("gate_X", None if context else nn.Parameter(torch.zeros(num_inputs)))

    def forward(self, tokens_BTD: Tensor, inputs_BX: Tensor) -> Tensor:
        gate = self.gate_X if self.network is None else self.network(tokens_BTD[:, self.context].flatten(1))
        return 2 * torch.sigmoid(gate) * inputs_BX


class BilinearFusion(nn.Module):
    """b + w1 o1 + w2 o2 + the sum over heads of o1_h W_h o2_h, o_h a head's share of the outputs."""

    def __init__(self, num_first: int, num_second: int, num_heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(num_first, 1)
        self.second = nn.Linear(num_second, 1, bias=False)
        shape = (num_heads, num_first // num_heads, num_second // num_heads)
        self.product_HPQ = nn.Parameter(torch.randn(shape) / (shape[0] * shape[1] * shape[2]) ** 0.5)

    def forward(self, first_BO: Tensor, second_BO: Tensor) -> Tensor:
        """B."""
        first_BHP, second_BHQ = (x.unflatten(1, (len(self.product_HPQ), -1)) for x in (first_BO, second_BO))
        product_B = torch.einsum("bhp,hpq,bhq->b", first_BHP, self.product_HPQ, second_BHQ)
        return product_B + (self.first(first_BO) + self.second(second_BO)).squeeze(1)


@register(FinalMLPConfig)
class FinalMLP(nn.Module):
    """logit = fusion(network(gated inputs), network(gated inputs)); inputs are embeddings and dense features as is."""

    def __init__(self, config: FinalMLPConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        for name in ("context1", "context2"):
            outside = [i for i in getattr(config, name) if not 0 <= i < num_tokens]
            if outside:
                raise NarrowcastError(
                    f"{name} of finalmlp names input {outside[0]}: the data has {num_tokens} categorical fields and "
                    f"sequences, counted from 0 to {num_tokens - 1}"
                )
        num_inputs = num_tokens * width + num_dense
        self.gate1 = Gate(config.context1, config.gate_hidden, width, num_inputs)
        self.gate2 = Gate(config.context2, config.gate_hidden, width, num_inputs)
        self.stream1 = mlp(num_inputs, config.hidden, config.dropout)
        self.stream2 = mlp(num_inputs, config.second, config.dropout)
        self.fusion = BilinearFusion(config.hidden[-1], config.second[-1], config.num_heads)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        inputs_BX = torch.cat([tokens_BTD.flatten(1), dense_BN], dim=1)
        first_BO = self.stream1(self.gate1(tokens_BTD, inputs_BX))
        second_BO = self.stream2(self.gate2(tokens_BTD, inputs_BX))
        return self.fusion(first_BO, second_BO)
