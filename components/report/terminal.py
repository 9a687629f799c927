"""What the command line prints when a run has ended."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from narrowcast.components.report.values import NONE, byte_size, count, four_decimals, milliseconds, sentence, times


def run_summary(
    evaluation: Mapping[str, Any], deployment: Mapping[str, Any], rows: int, data_version: str, report_path: str
) -> RenderableType:
    """A run's closing table, and a line for every gate that failed.

    `evaluation` and `deployment` as in `evaluation.json` and `deployment.json`; `rows`: events that were ingested.
    """
    sizes, latency_ms, gates = evaluation["bytes"], evaluation["latency_ms"], evaluation["gates"]
    full, packed = _auc(evaluation, "full"), _auc(evaluation, "packed")
    failed = [gate for gate in gates if not gate["passed"]]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("full", justify="right")
    table.add_column("compact", justify="right", style="bold")
    table.add_column("")
    change = "" if full is None or packed is None else f"{packed - full:+.4f}".replace("-", "\u2212")
    table.add_row("test AUC", four_decimals(full), four_decimals(packed), change)
    smaller = f"{times(sizes['full'], sizes['packed'])} smaller" if sizes["packed"] else ""
    table.add_row("table bytes", byte_size(sizes["full"]), byte_size(sizes["packed"]), smaller)
    table.add_row("latency p50", "", milliseconds(latency_ms.get("p50")), "")
    table.add_row("latency p99", "", milliseconds(latency_ms.get("p99")), "")

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    passed = f"{len(gates) - len(failed)} of {len(gates)} passed"
    facts.add_row("gates", Text(passed, style="red" if failed else "green"))
    for gate in failed:
        facts.add_row("", Text(f"{gate['name']}: {sentence(gate['sentence'])}", style="red"))
    facts.add_row("endpoint", Text(_endpoint(deployment)))
    if not deployment["deployed"] and not failed:
        facts.add_row("", Text(sentence(deployment["reason"]), style="yellow"))
    facts.add_row("rows", count(rows))
    facts.add_row("data version", Text(data_version or NONE))
    facts.add_row("report", Text(report_path))
    return Group(table, Text(), facts)


def _auc(evaluation: Mapping[str, Any], model: str) -> float | None:
    metrics = evaluation["metrics"].get(model)
    return metrics["auc"] if metrics else None


def _endpoint(deployment: Mapping[str, Any]) -> str:
    if deployment["deployed"]:
        return f"{deployment['url']} ({deployment['endpoint']})"
    if deployment["url"]:
        return f"{deployment['url']} ({deployment['endpoint']}, left as it was)"
    return f"nothing serves at {deployment['endpoint']}" if deployment["endpoint"] else NONE
