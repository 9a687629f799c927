"""What each section of the page shows, as the template reads it: figures, rows, a sentence; None without its file."""

from typing import Any

from markupsafe import Markup

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import Field, Schema
from narrowcast.components.report import charts, story, values
from narrowcast.components.report.charts import Bar, Point, Series
from narrowcast.components.report.run import STEPS, Run
from narrowcast.components.train.plan import Plan, TablePlan

METRICS = {
    "auc": "AUC",
    "gauc": "AUC within a user",
    "logloss": "Logloss",
    "normalised_entropy": "Normalised entropy",
    "calibration": "Predicted over observed clicks",
}
MODELS = {"full": "Full", "compact": "Compact, as trained", "packed": "Compact, as packed", "champion": "Champion"}
QUANTILES = {"p50": "median", "p90": "90 of 100", "p99": "99 of 100"}
DRIFT_BARS = 20
"""The chart shows the fields that drift most; the rest is in the table."""


def squares(run: Run) -> Markup | None:
    evaluation = run.results["evaluate"]
    if evaluation is None:
        return None
    full, packed = evaluation["bytes"]["full"], evaluation["bytes"]["packed"]
    if not packed:
        return None
    sizes = f"the full tables, {values.byte_size(full)}, and the packed ones, {values.byte_size(packed)}"
    return charts.squares(full, packed, label=f"Two squares to scale: {sizes}")


def gates(run: Run) -> list[dict[str, Any]] | None:
    evaluation = run.results["evaluate"]
    if evaluation is None:
        return None
    return [
        {**gate, "title": story.GATES.get(gate["name"], gate["name"].replace("_", " ").capitalize())}
        for gate in evaluation["gates"]
    ]


def fields(schema: Schema, run: Run) -> list[dict[str, Any]]:
    return [_field(field, schema, run) for field in schema.inputs]


def splits(run: Run) -> list[tuple[str, int, float]]:
    """Name, rows and click rate of every part of the data; empty where the encoder left no record of them."""
    encode = run.records["encode"]
    rows, positives = ((encode.details if encode else {}).get(key, {}) for key in ("rows", "positives"))
    return [
        (name, rows[name], positives[name] / max(rows[name], 1))
        for name in SPLITS
        if name in rows and name in positives
    ]


def _field(field: Field, schema: Schema, run: Run) -> dict[str, Any]:
    bounds = []
    if field.values:
        bounds.append(values.join(list(field.values)))
    if field.min is not None or field.max is not None:
        low = "" if field.min is None else f"from {field.min:g}"
        bounds.append(f"{low} {'' if field.max is None else f'to {field.max:g}'}".strip())
    if field.type == "sequence":
        bounds.append(f"up to {field.max_length} ids")
    if field.min_count > 1:
        bounds.append(f"ids seen {field.min_count} times or more")
    if field.nullable:
        bounds.append("may be missing")
    table = None if field.type == "numeric" or not run.plan else run.plan.tables.get(schema.vocabulary_of(field))
    return {
        "name": field.name,
        "type": field.type,
        "owner": field.owner,
        "bounds": "; ".join(bounds),
        "rows": table.rows if table else None,
        "derived": field not in schema.fields,
    }


def validations(run: Run) -> list[dict[str, Any]]:
    names = {"validate_raw": "Raw tables", "validate_frame": "Training frame"}
    return [
        {"title": title, "checks": run.results[step], "sentence": story.validation(run.results[step])}
        for step, title in names.items()
        if run.results[step] is not None
    ]


def drift(run: Run) -> dict[str, Any] | None:
    drift = run.results["drift"]
    if not drift or not drift["fields"]:
        return None
    rows = sorted(drift["fields"], key=lambda row: (-row["psi"], row["name"]))
    bounded = [row for row in rows if row["limit"] is not None]
    if not bounded:
        return None
    limit = bounded[0]["limit"]
    bars = [
        Bar(name=r["name"], value=r["psi"], shown=values.three_decimals(r["psi"]), over=r["psi"] > limit)
        for r in bounded[:DRIFT_BARS]
    ]
    figures = [_bars(bars, limit, values.plain(limit), "population stability index", "Drift by field")]
    unseen = [row for row in rows if row["unseen_share"] is not None]
    if unseen:
        unseen_limit = unseen[0]["unseen_limit"]
        bars = [
            Bar(
                name=r["name"],
                value=r["unseen_share"],
                shown=values.percent(r["unseen_share"]),
                over=r["unseen_share"] > r["unseen_limit"],
            )
            for r in sorted(unseen, key=lambda row: -row["unseen_share"])[:DRIFT_BARS]
        ]
        title = "later rows whose id training never saw"
        figures.append(
            _bars(bars, unseen_limit, values.percent(unseen_limit), title, "Share of later rows with unseen ids")
        )
    return {"figures": figures, "rows": rows, "sentence": story.drift({r["name"]: r["psi"] for r in bounded}, limit)}


def _bars(rows: list[Bar], limit: float | None, limit_text: str, title: str, label: str) -> Markup:
    told = ", ".join(f"{row.name} {row.shown}" for row in rows)
    return charts.bars(rows, limit, limit_text=limit_text, title=title, label=f"{label}: {told}")


def learning(run: Run) -> dict[str, Any] | None:
    curves = {
        name: run.results[key]
        for name, key in (("full", "train"), ("compact", "retrain"))
        if (run.results[key] or {}).get("curves")
    }
    if not curves:
        return None

    def series(measure: str, dashed: bool = False) -> list[Series]:
        return [
            Series(
                name=name,
                kind=name,
                points=[(row["epoch"], row[measure]) for row in metrics["curves"]],
                best=None if dashed else metrics["best_epoch"],
                dashed=dashed,
            )
            for name, metrics in curves.items()
        ]

    def drawn(title: str, lines: list[Series]) -> Markup:
        ends = [(s.name, *(values.four_decimals(s.points[i][1]) for i in (0, -1))) for s in lines if not s.dashed]
        told = "; ".join(f"{name} from {first} to {last}" for name, first, last in ends)
        return charts.curves(lines, title=title, label=f"{title} by epoch: {told}")

    figures = [
        (drawn("AUC on validation", series("validation_auc")), "The ringed epoch is the one that was kept."),
        (
            drawn("logloss", series("train_logloss", dashed=True) + series("validation_logloss")),
            "Solid: validation rows. Dashed: training rows.",
        ),
    ]
    return {"figures": figures, "sentence": story.learning(run)}


def frontier(run: Run) -> dict[str, Any] | None:
    search = run.results["search"]
    points = []
    for name, key in (("full", "train"), ("compact", "retrain")):
        metrics = run.results[key]
        if metrics:
            points.append(
                Point(name=name, kind=name, stored_bytes=metrics["stored_bytes"], auc=metrics["validation"]["auc"])
            )
    for kind, key in (("trial", "trials"), ("reference", "references")):
        for row in (search or {}).get(key, ()):
            points.append(
                Point(
                    name=row["name"],
                    kind=kind,
                    stored_bytes=row["bytes"],
                    auc=row["validation_auc"],
                    settings=values.plain(row.get("settings") or {}),
                )
            )
    if not search or not points:
        return None
    budget = search["budget_bytes"]
    label = "Validation AUC by stored bytes: " + "; ".join(
        f"{p.name} {values.byte_size(p.stored_bytes)} {values.four_decimals(p.auc)}" for p in points
    )
    return {
        "figure": charts.frontier(points, budget, label=label),
        "rows": points,
        "sentence": story.frontier(points, budget),
    }


def tables(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    largest_first = sorted(plan.tables.items(), key=lambda entry: (-entry[1].rows, entry[0]))
    rows = [_table(name, table, plan.width) for name, table in largest_first]
    bits = sorted({b.bits for table in plan.tables.values() for b in table.blocks if b.columns}, reverse=True)
    return {"rows": rows, "plan": plan, "bits": bits, "sentence": story.tables(plan)}


def _table(name: str, table: TablePlan, width: int) -> dict[str, Any]:
    kept = sum(block.stop - block.start for block in table.blocks if block.columns)
    widths = sorted({block.width for block in table.blocks if block.columns})
    bits = sorted({block.bits for block in table.blocks if block.columns})
    full, stored = 4 * table.rows * width, table.stored_bytes(width)
    shape = "nothing" if not widths else f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
    return {
        "name": name,
        "rows": table.rows,
        "kept_rows": kept,
        "widths": shape,
        "projection": table.projection,
        "bits": values.join([str(b) for b in bits]) or values.NONE,
        "full_bytes": full,
        "stored_bytes": stored,
        "share": stored / full,
        "box": charts.table_box(
            table,
            width,
            label=f"{name}: {kept:,} of {table.rows:,} rows and {shape} of {width} columns kept, "
            f"{values.percent(stored / full)} of the bytes",
        ),
    }


def quality(run: Run) -> dict[str, Any] | None:
    evaluation = run.results["evaluate"]
    if evaluation is None:
        return None
    models = [name for name in MODELS if evaluation["metrics"].get(name)]
    rows = [(title, [evaluation["metrics"][model].get(key) for model in models]) for key, title in METRICS.items()]
    curve = [(row["predicted"], row["observed"], row["rows"]) for row in evaluation["calibration_curve"]]
    told = "; ".join(f"{values.three_digits(p)} predicted, {values.three_digits(o)} observed" for p, o, _ in curve)
    return {
        "models": [MODELS[name] for name in models],
        "rows": rows,
        "figure": charts.calibration(curve, label=f"Calibration of the packed model: {told}") if curve else None,
        "sentence": story.calibration(run.test_metric("packed", "calibration")),
    }


def serving(run: Run) -> dict[str, Any] | None:
    evaluation = run.results["evaluate"]
    if evaluation is None:
        return None
    times = evaluation["latency_ms"]
    marks = [(name, value) for name, value in times.items() if name[:1] == "p" and name[1:].isdigit()]
    gate = next((gate for gate in evaluation["gates"] if gate["name"] == "latency"), None)
    bars = [
        Bar(
            name=QUANTILES.get(name, name),
            value=value,
            shown=values.milliseconds(value),
            over=gate is not None and name == "p50" and not gate["passed"],
        )
        for name, value in sorted(marks, key=lambda mark: mark[1])
    ]
    limit = gate["limit"] if gate else None
    title = "time of one request, limit for the median"
    return {
        "figure": _bars(bars, limit, values.milliseconds(limit), title, "Response times") if bars else None,
        "others": {name: value for name, value in times.items() if (name, value) not in marks},
    }


def notes(run: Run) -> list[dict[str, Any]]:
    """The flat values that the steps noted, plan parameters included."""
    found = []
    for step in STEPS:
        record = run.records[step]
        if record is None or step == "deploy":  # told under Serving
            continue
        flat = {**record.details, **record.metrics}
        if step == "search" and run.plan:
            flat = {**run.plan.parameters, "method": run.plan.method, **flat}
        entries = {
            key.replace("_", " "): values.plain(value)
            for key, value in flat.items()
            if isinstance(value, str | int | float)
        }
        if entries:
            found.append({"step": step, "entries": entries})
    return found
