"""Which token may read which: the attention masks of the feature-interaction transformer, behind one interface.

A mask turns a block's attention scores into ones and zeros, open and closed pairs (reader i, read j). The diagonal is
always open, so no row of the attention is ever empty. All four kinds are our own choice (arXiv 2308.14902 establishes a
masked block, not its mask).

Shape letters: B rows, H heads, V tokens (twice: reader, read).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.errors import NarrowcastError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """`kind`: a name in `MASKS`. Of `topk`, `top_k`: how many tokens each reader keeps, itself among them. Of
    `learned`, `penalty`: weight of the mean open probability in the training loss, `initial_logit`: where every pair's
    logit starts.

    A pair closes once its logit falls below 0. Adam moves a logit by about its learning rate a step, so at 1e-3 a
    start of 0.02 closes after twenty steps at the earliest, and a start of 5 hardly ever.
    """

    kind: str
    top_k: int
    penalty: float
    initial_logit: float

    def __post_init__(self) -> None:
        if self.kind not in MASKS:
            raise NarrowcastError(f"no mask named '{self.kind}': {nearest(self.kind, MASKS)}")
        if self.top_k < 1:
            raise NarrowcastError(f"top_k is {self.top_k}: a token reads at least itself, so give 1 or more")
        if not 0 <= self.penalty < math.inf:
            raise NarrowcastError(f"the mask's penalty is {self.penalty}: must be a number of at least 0")
        if not math.isfinite(self.initial_logit):
            raise NarrowcastError(f"the mask's initial logit is {self.initial_logit}: must be a number")


class OpenMask(nn.Module):
    """Every token reads every token: the control, as AutoInt has it (arXiv 1810.11921)."""

    open_VV: Tensor

    def __init__(self, config: MaskConfig, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.register_buffer("open_VV", self.allowed(num_tokens), persistent=False)

    @staticmethod
    def allowed(num_tokens: int) -> Tensor:
        return torch.ones(num_tokens, num_tokens)

    def forward(self, scores_BHVV: Tensor) -> Tensor:
        """1 where the pair is open, else 0; a shape that broadcasts to B x H x V x V."""
        return self.open_VV


class CausalMask(OpenMask):
    """A token reads itself and the tokens before it, in the schema's order."""

    @staticmethod
    def allowed(num_tokens: int) -> Tensor:
        return torch.ones(num_tokens, num_tokens).tril()


class LearnedMask(nn.Module):
    """A logit per head and pair: open where it is positive. The step passes the gradient on as if it were the sigmoid
    (straight-through, arXiv 1308.3432, section 4)."""

    closable_VV: Tensor

    def __init__(self, config: MaskConfig, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.weight = config.penalty
        self.logit_HVV = nn.Parameter(torch.full((num_heads, num_tokens, num_tokens), config.initial_logit))
        self.register_buffer("closable_VV", 1 - torch.eye(num_tokens), persistent=False)

    def forward(self, scores_BHVV: Tensor) -> Tensor:
        """H x V x V."""
        probability_HVV = torch.sigmoid(self.logit_HVV)
        through_HVV = probability_HVV - probability_HVV.detach()  # exactly 0, with the sigmoid's gradient
        open_HVV = (self.logit_HVV > 0).to(probability_HVV.dtype) + through_HVV
        return torch.where(self.closable_VV > 0, open_HVV, 1.0)

    def penalty(self) -> Tensor:
        """The mean open probability of the pairs that can close, weighted; 0 where there are none."""
        num_pairs = len(self.logit_HVV) * self.closable_VV.sum()
        return self.weight * (torch.sigmoid(self.logit_HVV) * self.closable_VV).sum() / num_pairs.clamp(min=1)


class TopKMask(nn.Module):
    """A token reads itself and the `top_k` - 1 others with its highest scores, row by row of the batch."""

    itself_VV: Tensor

    def __init__(self, config: MaskConfig, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.top_k = min(config.top_k, num_tokens)
        self.register_buffer("itself_VV", torch.eye(num_tokens, dtype=torch.bool), persistent=False)

    def forward(self, scores_BHVV: Tensor) -> Tensor:
        """B x H x V x V, without gradient."""
        first_BHVV = scores_BHVV.detach().masked_fill(self.itself_VV, torch.inf)
        kept = first_BHVV.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(first_BHVV).scatter(-1, kept, 1.0)


Mask = OpenMask | LearnedMask | TopKMask
MASKS: dict[str, Callable[[MaskConfig, int, int], Mask]] = {
    "none": OpenMask,
    "causal": CausalMask,
    "learned": LearnedMask,
    "topk": TopKMask,
}


def build_mask(config: MaskConfig, num_heads: int, num_tokens: int) -> Mask:
    return MASKS[config.kind](config, num_heads, num_tokens)


def masked_softmax(scores: Tensor, gates: Tensor) -> Tensor:
    """Softmax over the last dimension among the entries whose gate is 1; those of gate 0 weigh exactly 0.

    Shapes broadcast; every row needs an open gate. Differentiable by the gates, closed ones included: that is how a
    closed pair can open again. For that gradient a closed score counts no higher than its row's best open one, which
    bounds it (our choice).
    """
    best_open = scores.detach().masked_fill(gates == 0, -torch.inf).amax(-1, keepdim=True)
    weights = torch.exp((scores - best_open).clamp(max=0)) * gates
    return weights / weights.sum(-1, keepdim=True)
