"""Latency percentiles against offered load, up to where the server no longer keeps up."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from chart import Line, line_chart
from rich.table import Table

from load.arrivals import constant, poisson
from load.generator import offer
from load.http1 import HttpSender
from load.summary import Summary, summarise

OPENED = 16
"""Connections opened before the first request."""


async def measure(
    url: str,
    make: Callable[[int], bytes],
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    evenly: bool = False,
    timeout_s: float = 10.0,
) -> Summary:
    """Figures of `seconds` of load; Poisson arrivals, or `evenly` spaced ones."""
    send = HttpSender(url, make)
    await send.open(OPENED)
    try:
        arrivals_s = constant(rate, seconds) if evenly else poisson(rate, seconds, seed)
        outcomes = await offer(arrivals_s, send, timeout_s=timeout_s, keep=lambda index: False)
    finally:
        await send.close()
    return summarise(outcomes, seconds)


async def sweep(
    url: str,
    make: Callable[[int], bytes],
    rates: Iterable[float],
    seconds: float,
    *,
    seed: int = 0,
    evenly: bool = False,
    tell: Callable[[Summary], None] = lambda summary: None,
) -> list[Summary]:
    """Figures at each of the ascending `rates`; the first that saturates the server is the last."""
    found = []
    for rate in rates:
        found.append(await measure(url, make, rate, seconds, seed=seed, evenly=evenly))
        tell(found[-1])
        if found[-1].saturated:
            break
        await asyncio.sleep(0.5)
    return found


def table(title: str, summaries: Sequence[Summary]) -> Table:
    shown = Table("offered/s", "answered/s", "p50", "p90", "p99", "max, ms", "late, ms", "errors", title=title)
    for summary in summaries:
        latencies = (summary.p50, summary.p90, summary.p99, summary.max, summary.lateness_ms)
        errors = ", ".join(f"{count} {kind}" for kind, count in summary.errors.items())
        shown.add_row(
            f"{summary.offered_rate:.0f}",
            f"{summary.answered_rate:.0f}{' (saturated)' if summary.saturated else ''}",
            *(f"{value:.1f}" for value in latencies),
            errors or "none",
        )
    return shown


def chart(found: dict[str, Sequence[Summary]]) -> str:
    """SVG of the loads that were kept up with: the 99th percentile of each server, of a single one the others too."""
    percentiles = ("p50", "p90", "p99") if len(found) == 1 else ("p99",)
    lines = []
    for name, summaries in found.items():
        kept = [summary for summary in summaries if not summary.saturated]
        for percentile in percentiles if kept else ():
            points = [(round(summary.offered_rate), getattr(summary, percentile)) for summary in kept]
            lines.append(Line(name=percentile if len(found) == 1 else name, points=points))
    return line_chart(
        lines,
        title="latency, ms" if len(found) == 1 else "latency, 99th percentile, ms",
        x_title="offered requests a second",
        label="Latency percentiles against offered load",
        log_x=True,
    )


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    return [{**asdict(summary), "saturated": summary.saturated} for summary in summaries]
