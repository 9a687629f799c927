"""Parameter ensembling by perturbation: the mean prediction under Gaussian noise on the trained weights.

After Mehrtash et al. 2020 (arXiv 2010.12721): theta_i = theta + scale * e_i, e_i ~ N(0, I), the members' probabilities
averaged, the scale chosen for the best log-likelihood on validation by golden-section search. Our choices: members come
in pairs with opposite noise, so that what the noise does to first order cancels exactly; every scale is tried with the
same noise; the scale is searched by its logarithm; 0, the model as it is, wins unless the noise gains `LEAST_GAIN`.

An ensemble of m members costs m passes a request, so narrowcast serves none: this is for measuring.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from narrowcast.components.data.encoded import Split
from narrowcast.components.train.metrics import logloss
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError

LEAST_GAIN = 1e-6
"""Nats of validation logloss under which a gain is rounding."""
SCALES = (1e-4, 1.0)
"""Where the scale is searched."""
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """`members` (even) perturbations of one model, drawn from `seed`, with noise of standard deviation `scale`."""

    scale: float
    members: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 2 or self.members % 2:
            raise NarrowcastError(f"members is {self.members}: must be even and at least 2, as they come in pairs")
        if not 0 <= self.scale < math.inf:
            raise NarrowcastError(f"scale is {self.scale}: must be a number of at least 0")

    def predict(self, model: nn.Module, split: Split) -> NDArray[np.float32]:
        """The members' mean probability of every row, B; with scale 0 the model's own. The model is left as it was."""
        if not self.scale:
            return predict(model, split)
        total_B = np.zeros(len(split))
        for pair in range(self.members // 2):
            for sign in (1, -1):
                with perturbed(model, sign * self.scale, seed=self.seed * self.members + pair):
                    total_B += predict(model, split)
        return (total_B / self.members).astype(np.float32)


def best_ensemble(
    model: nn.Module, validation: Split, *, members: int = 10, seed: int = 0, evaluations: int = 12
) -> Ensemble:
    """The ensemble with the lowest logloss on `validation`; its scale is 0 where noise does not help."""

    def loss(log_scale: float) -> float:
        ensemble = Ensemble(scale=math.exp(log_scale), members=members, seed=seed)
        return logloss(validation.label_B, ensemble.predict(model, validation))

    log_scale, lowest = golden_section(loss, math.log(SCALES[0]), math.log(SCALES[1]), evaluations)
    helps = lowest < logloss(validation.label_B, predict(model, validation)) - LEAST_GAIN
    return Ensemble(scale=math.exp(log_scale) if helps else 0.0, members=members, seed=seed)


def golden_section(
    function: Callable[[float], float], low: float, high: float, evaluations: int
) -> tuple[float, float]:
    """The lowest of `evaluations` (at least 2) values of a function between `low` and `high`, as (argument, value).

    Where the function falls and then rises, the arguments close in on its minimum (Kiefer 1953).
    """
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    seen = [(function(left), left), (function(right), right)]
    at_left, at_right = seen[0][0], seen[1][0]
    for _ in range(evaluations - 2):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
            seen.append((at_left, left))
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
            seen.append((at_right, right))
    value, argument = min(seen)
    return argument, value


@contextlib.contextmanager
@torch.no_grad()
def perturbed(model: nn.Module, scale: float, *, seed: int) -> Iterator[None]:
    """Within the block every parameter has noise N(0, scale^2) added; after it the very bits it had before."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise.to(parameter.device), alpha=scale)
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.copy_(original)
