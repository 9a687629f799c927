"""A load in figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from load.generator import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Rates a second, latencies in milliseconds from the scheduled time, of the requests answered with status 200.

    `answered_rate` counts answers that came while the load lasted; `kept_up` is the share of the requests due in its
    first nine tenths that were. `lateness_ms` is how late the generator sent, p99.
    """

    offered_rate: float
    answered_rate: float
    kept_up: float
    requests: int
    p50: float
    p90: float
    p99: float
    max: float
    lateness_ms: float
    errors: dict[str, int]

    @property
    def saturated(self) -> bool:
        """Whether requests pile up, or are refused: our choice of 5 % and 1 %."""
        return self.kept_up < 0.95 or sum(self.errors.values()) > 0.01 * self.requests


def summarise(outcomes: Sequence[Outcome], seconds: float) -> Summary:
    """Figures of a load that lasted `seconds`; latencies are NaN where nothing was answered."""
    good = [outcome for outcome in outcomes if not outcome.error]
    latencies_ms = np.array([outcome.latency_s for outcome in good] or [np.nan]) * 1e3
    p50, p90, p99 = np.percentile(latencies_ms, PERCENTILES).tolist()
    early = [outcome for outcome in outcomes if outcome.scheduled_s < 0.9 * seconds]
    late_ms = [(outcome.sent_s - outcome.scheduled_s) * 1e3 for outcome in outcomes]
    return Summary(
        offered_rate=len(outcomes) / seconds,
        answered_rate=sum(outcome.done_s <= seconds for outcome in good) / seconds,
        kept_up=float(np.mean([not o.error and o.done_s <= seconds for o in early])) if early else 1.0,
        requests=len(outcomes),
        p50=p50,
        p90=p90,
        p99=p99,
        max=float(latencies_ms.max()),
        lateness_ms=float(np.percentile(late_ms, 99)),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
    )
