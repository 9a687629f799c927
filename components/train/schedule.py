"""Learning-rate schedules: by what factor a step's learning rates differ from the ones that were set."""

import math
from collections.abc import Callable, Sequence

PLATEAU_FACTOR = 0.1


def rate_factor(
    schedule: str, step: int, *, num_steps: int, warmup_steps: int, validation_aucs: Sequence[float]
) -> float:
    """The factor of step `step` (from 0) of `num_steps`; it follows from its arguments alone, so resuming restores it.

    In the first `warmup_steps` it rises in equal parts to 1; the schedule runs over the steps after them. 'cosine' and
    'linear' end at 0 after the last step of the last epoch, 'plateau' shrinks tenfold after every epoch in
    `validation_aucs` that is no better than all before it.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    return SCHEDULES[schedule](progress, validation_aucs)


def _constant(progress: float, validation_aucs: Sequence[float]) -> float:
    return 1.0


def _cosine(progress: float, validation_aucs: Sequence[float]) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, validation_aucs: Sequence[float]) -> float:
    return 1 - progress


def _plateau(progress: float, validation_aucs: Sequence[float]) -> float:
    stale = sum(auc <= max(validation_aucs[:i]) for i, auc in enumerate(validation_aucs) if i)
    return float(PLATEAU_FACTOR**stale)


SCHEDULES: dict[str, Callable[[float, Sequence[float]], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "plateau": _plateau,
}
