"""What a server counts, as Prometheus reads it at /metrics."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from kserve.metrics import PREDICT_HIST_TIME
from numpy.typing import NDArray
from prometheus_client import REGISTRY, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from narrowcast.components.serve.batching import Scored

SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
STAGES = ("parse", "lookup", "encode", "queue", "score", "respond")
PROBABILITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NAME = ["model_name"]

STAGE_SECONDS = Histogram(
    "narrowcast_stage_seconds",
    f"Seconds of one request in a stage: {', '.join(STAGES)}",
    [*NAME, "stage"],
    buckets=SECONDS,
)
REQUESTS = Counter("narrowcast_requests", "Requests answered, by protocol and status", [*NAME, "protocol", "status"])
BATCH_REQUESTS = Histogram(
    "narrowcast_batch_requests", "Requests scored at once, by request", NAME, buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
REQUEST_CANDIDATES = Histogram(
    "narrowcast_request_candidates",
    "Candidates of a request",
    NAME,
    buckets=(1, 10, 50, 100, 200, 500, 1000, 2000, 5000),
)
CANDIDATES = Counter("narrowcast_candidates", "Candidates scored", NAME)
IDS = Counter("narrowcast_ids", "User and item keys scored", [*NAME, "key"])
UNKNOWN_IDS = Counter("narrowcast_unknown_ids", "Those of narrowcast_ids that the model never saw", [*NAME, "key"])
FALLBACKS = Counter(
    "narrowcast_fallbacks", "Lookups answered by defaults, as the store was late or gone", [*NAME, "owner"]
)
SWAPS = Counter("narrowcast_swaps", "New versions that took over", NAME)
FAILED_SWAPS = Counter("narrowcast_failed_swaps", "New versions that were refused", NAME)

FOLLOWED: dict[str, tuple[type[CounterMetricFamily | GaugeMetricFamily], str]] = {
    "requests_in_flight": (GaugeMetricFamily, "Requests that are being answered"),
    "queue_depth": (GaugeMetricFamily, "Requests that wait for the scorer"),
    "history_cache_hits": (CounterMetricFamily, "Histories found encoded"),
    "history_cache_misses": (CounterMetricFamily, "Histories that had to be encoded"),
    "history_cache_bytes": (GaugeMetricFamily, "Bytes of the encoded histories kept"),
    "request_log_dropped": (CounterMetricFamily, "Requests that the request log could not take"),
    "model_info": (GaugeMetricFamily, "1 for the version that answers"),
}
"""Read when they are asked for; the counters begin anew with every version of the model."""


class Metrics:
    """The metrics of one model name, each label looked up once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stage = {stage: STAGE_SECONDS.labels(name, stage) for stage in STAGES}
        self._predict_seconds = PREDICT_HIST_TIME.labels(model_name=name)
        self._batch_requests = BATCH_REQUESTS.labels(name)
        self.swaps, self.failed_swaps = SWAPS.labels(name), FAILED_SWAPS.labels(name)
        self._candidates, self._request_candidates = CANDIDATES.labels(name), REQUEST_CANDIDATES.labels(name)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.stage[stage].observe(perf_counter() - started)

    def answered(self, protocol: str, status: int | str) -> None:
        REQUESTS.labels(self.name, protocol, str(status)).inc()

    def scored(self, scored: Scored, seconds: float) -> None:
        """Count a request that was answered in `seconds`."""
        num_candidates = len(scored.probability_M)
        self.stage["queue"].observe(scored.queue_seconds)
        self.stage["score"].observe(scored.score_seconds)
        self._batch_requests.observe(scored.num_requests)
        self._predict_seconds.observe(seconds)
        self._candidates.inc(num_candidates)
        self._request_candidates.observe(num_candidates)
        SCORES.add(self.name, scored.probability_M)

    def ids(self, key: str, known: int, unknown: int) -> None:
        IDS.labels(self.name, key).inc(known + unknown)
        UNKNOWN_IDS.labels(self.name, key).inc(unknown)

    def fallback(self, owner: str) -> None:
        FALLBACKS.labels(self.name, owner).inc()

    def follow(self, read: Callable[[], tuple[str, Mapping[str, float]]]) -> None:
        """Have `read` give the version that answers and the values of `FOLLOWED` whenever they are asked for."""
        LIVE.sources[self.name] = read


class Live(Collector):
    """The values of `FOLLOWED`, by model name and version."""

    def __init__(self) -> None:
        self.sources: dict[str, Callable[[], tuple[str, Mapping[str, float]]]] = {}

    def collect(self) -> Iterator[Metric]:
        found = {name: read() for name, read in self.sources.items()}
        for metric, (family, text) in FOLLOWED.items():
            filled = family(f"narrowcast_{metric}", text, labels=[*NAME, "version"])
            for name, (version, values) in found.items():
                if metric in values:
                    filled.add_metric([name, version], values[metric])
            yield filled


class Scores(Collector):
    """Histogram of the probabilities answered: a request's are counted at once, which `Histogram` cannot."""

    def __init__(self) -> None:
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}

    def add(self, name: str, probability_M: NDArray[np.float32]) -> None:
        bucket_M = np.searchsorted(np.array(PROBABILITIES, np.float32), probability_M)
        counts = np.bincount(bucket_M, minlength=len(PROBABILITIES) + 1)
        self._counts[name] = self._counts.get(name, 0) + counts
        self._sums[name] = self._sums.get(name, 0.0) + float(probability_M.sum(dtype=np.float64))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily("narrowcast_probability", "Probabilities answered", labels=NAME)
        for name, counts in self._counts.items():
            bounds = (*map(str, PROBABILITIES), "+Inf")
            buckets = [(bound, float(count)) for bound, count in zip(bounds, counts.cumsum(), strict=True)]
            family.add_metric([name], buckets, self._sums[name])
        yield family


SCORES = Scores()
LIVE = Live()
REGISTRY.register(SCORES)
REGISTRY.register(LIVE)
