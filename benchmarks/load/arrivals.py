"""When requests leave: fixed before the first one does."""

import numpy as np
from numpy.typing import NDArray


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Ascending times below `seconds` of a Poisson process of `rate` events a second. Equal arguments, equal times."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, max(16, round(rate * seconds * 2))))
    while times[-1] < seconds:
        times = np.append(times, times[-1] + np.cumsum(rng.exponential(1 / rate, len(times))))
    return times[times < seconds]


def constant(rate: float, seconds: float) -> NDArray[np.float64]:
    """Times below `seconds`, 1 / `rate` apart, from 0 on."""
    return np.arange(round(rate * seconds)) / rate
