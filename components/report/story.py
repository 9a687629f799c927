"""What a run means, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from narrowcast.components.report.charts import Point
from narrowcast.components.report.run import Run
from narrowcast.components.report.values import (
    byte_size,
    count,
    four_decimals,
    join,
    milliseconds,
    percent,
    plain,
    sentence,
    three_decimals,
    times,
)
from narrowcast.components.train.plan import Plan

GATES = {
    "quality_full": "Quality against the full model",
    "quality_champion": "Quality against the champion",
    "bytes": "Bytes within the budget",
    "latency": "Latency",
    "parity_packed": "Packed scores as trained",
    "parity_served": "Served scores as packed",
    "server": "Server answers",
}


def headline(run: Run) -> str:
    evaluation = run.results["evaluate"]
    if evaluation is None:
        return "This run was not judged"
    where = _whereabouts(run)
    full, packed = run.test_metric("full", "auc"), run.test_metric("packed", "auc")
    if full is None or packed is None or not evaluation["bytes"]["packed"]:
        return f"The compact model could not be measured; {where}"
    loss = full - packed
    if abs(loss) < 0.00005:
        quality, good = "keeps its AUC", True
    elif loss < 0:
        quality, good = f"gains {four_decimals(-loss)} AUC", True
    else:
        quality, good = f"loses {four_decimals(loss)} AUC", evaluation["passed"]
    smaller = times(evaluation["bytes"]["full"], evaluation["bytes"]["packed"])
    return f"The compact model is {smaller} smaller {'and' if good else 'but'} {quality}; {where}"


def lede(run: Run) -> str:
    """Why the model is or is not where it is."""
    evaluation, deployment = run.results["evaluate"], run.results["deploy"]
    if evaluation is None:
        return "evaluation.json is missing: no gate has spoken, so nothing of this run is deployed."
    gates = evaluation["gates"]
    failed = [sentence(gate["sentence"]) for gate in gates if not gate["passed"]]
    if failed:
        told = f"{len(failed)} of {len(gates)} gates failed. {' '.join(failed)}"
    else:
        told = f"All {len(gates)} gates passed."
    if deployment is None:
        return f"{told} deployment.json is missing: the run ended before it could deploy."
    endpoint = f"Endpoint “{deployment['endpoint']}”"
    if deployment["deployed"]:
        return f"{told} {endpoint} answered its sample request before it took over."
    if not failed:
        told += f" {sentence(deployment['reason'])}"
    if deployment["kept_champion"] and not serves_already(run):
        told += f" {endpoint} keeps the champion at {deployment['url']}."
    return told


def verdict(run: Run) -> str:
    """`good`, `bad` or `open`: the page's colour."""
    if run.results["evaluate"] is None or run.results["deploy"] is None:
        return "open"
    return "good" if run.results["deploy"]["deployed"] or serves_already(run) else "bad"


def serves_already(run: Run) -> bool:
    """Every gate passed and the endpoint was left alone, because this very model answers there."""
    evaluation, deployment = run.results["evaluate"], run.results["deploy"]
    if not evaluation or not evaluation["passed"] or not deployment or deployment["deployed"]:
        return False
    return deployment["kept_champion"] and "already serves" in deployment["reason"]


def facts(run: Run) -> list[tuple[str, str, str]]:
    """The key figures: label, value, note."""
    found = []
    evaluation = run.results["evaluate"]
    if evaluation is not None:
        sizes, latency_ms = evaluation["bytes"], evaluation["latency_ms"]
        full = four_decimals(run.test_metric("full", "auc"))
        found.append(("AUC on the test rows", four_decimals(run.test_metric("packed", "auc")), f"full model {full}"))
        note = f"full {byte_size(sizes['full'])}, budget {byte_size(sizes['budget'])}"
        found.append(("Embedding tables", byte_size(sizes["packed"]), note))
        if latency_ms:
            note = f"99 of 100 within {milliseconds(latency_ms['p99'])}"
            found.append(("Median response", milliseconds(latency_ms["p50"]), note))
    ingest = run.records["ingest"]
    if ingest is not None:
        refused = sum(sum(record.refused.values()) for record in run.records.values() if record)
        note = f"{count(refused)} refused, with reasons" if refused else "none refused, none lost"
        found.append(("Events", count(ingest.rows_in), note))
    return found


def learning(run: Run) -> str:
    told, resumed = [], []
    for name, key in (("full", "train"), ("compact", "retrain")):
        metrics = run.results[key]
        if metrics:
            auc = four_decimals(metrics["validation"]["auc"])
            told.append(f"the {name} model is best after epoch {metrics['best_epoch']}, at a validation AUC of {auc}")
            if metrics["resumed_from_epoch"] is not None:
                resumed.append(
                    f"The {name} model went on from epoch {metrics['resumed_from_epoch']} after a worker was lost."
                )
    return " ".join([sentence(join(told)), *resumed])


def tables(plan: Plan) -> str:
    largest, table = max(plan.tables.items(), key=lambda entry: entry[1].rows)
    full = 4 * table.rows * plan.width
    return (
        f"Of {byte_size(plan.full_bytes())} the plan keeps {byte_size(plan.stored_bytes())}, "
        f"{percent(plan.stored_bytes() / plan.full_bytes())}. The largest table, {largest}, keeps "
        f"{percent(table.stored_bytes(plan.width) / full)} of its {byte_size(full)}."
    )


def frontier(points: Sequence[Point], budget: float) -> str:
    full = next((p for p in points if p.kind == "full"), None)
    compact = next((p for p in points if p.kind == "compact"), None)
    if not compact:
        return ""
    told = f"The compact model uses {percent(compact.stored_bytes / budget)} of its budget of {byte_size(budget)}"
    if full:
        told += f", {times(full.stored_bytes, compact.stored_bytes)} less than the full tables"
    trials = sum(p.kind == "trial" for p in points)
    return (
        f"{told}; {trials} {'trial was' if trials == 1 else 'trials were'} measured on the way."
        if trials
        else f"{told}."
    )


def calibration(ratio: float | None) -> str:
    """`ratio`: predicted over observed clicks."""
    if ratio is None:
        return ""
    if abs(ratio - 1) < 0.0005:
        return "The packed model predicts as many clicks as there were."
    difference = f"{percent(abs(ratio - 1))} {'more' if ratio > 1 else 'fewer'}"
    return f"The packed model predicts {difference} clicks than there were."


def validation(checks: Sequence[Mapping[str, Any]]) -> str:
    """`checks` as in `validation.json`."""
    tables = sorted({check["table"] for check in checks})
    failed = sum(not check["passed"] for check in checks)
    verdict = "all of them hold" if not failed else f"{failed} found rows at fault, which were set aside"
    return f"{len(checks)} expectations of {join(tables)}: {verdict}." if checks else "No expectation was checked."


def drift(psi: Mapping[str, float], limit: float) -> str:
    worst = max(sorted(psi), key=lambda name: psi[name])
    over = sorted(name for name, value in psi.items() if value > limit)
    return (
        f"From the training period to the later one {worst} moves most: {three_decimals(psi[worst])} against a limit "
        f"of {plain(limit)}." + (f" Over the limit: {join(over)}." if over else "")
    )


def _whereabouts(run: Run) -> str:
    deployment = run.results["deploy"]
    if deployment and deployment["deployed"]:
        return f"it is deployed at {deployment['url']}"
    return f"it already serves at {deployment['url']}" if serves_already(run) else "it is not deployed"
