"""MLET: test AUC against width, with plain tables and with inner widths k, on all test rows and on those of rare items.

    python benchmarks/mlet.py --seeds 5

Everything but the tables is the same; a seed gives the initial values and the row order. The epoch is chosen on
validation, the tables below read test. k/D = 1 is the control: factorised, but no wider.

The rule: a way of training reaches plain tables of width 16 from width w on when at w, and at every greater width up to
16, its mean AUC over the seeds is at least theirs less the standard error of theirs. The ratio 16/w is MLET's merit
only where it exceeds that of plain tables themselves, so plain tables stand in the same table.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from chart import Line, line_chart
from options import describe, markdown, parser, prepare_all, settings, train_config
from rich.console import Console
from runner import RARE_BELOW, Job, run_all, summary

from data import rare_field, schema_of
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json, write_text

REFERENCE = 16
"""The width of the plain tables to be reached."""
PLAIN = 0
"""Stands for no inner width among the ratios k/D."""
Figures = dict[tuple[int, int], dict[str, float]]
"""`summary` of the seeds' AUCs, by width and ratio."""


def reached_from(figures: Figures, ratio: int) -> int | None:
    """The least width from which on training at `ratio` reaches plain tables of the reference width; see the rule."""
    goal = figures[REFERENCE, PLAIN]["mean"] - figures[REFERENCE, PLAIN]["se"]
    found = None
    for width in sorted({width for width, _ in figures if width <= REFERENCE}, reverse=True):
        if figures[width, ratio]["mean"] < goal:
            break
        found = width
    return found


def name_of(ratio: int) -> str:
    return "plain" if ratio == PLAIN else f"k/D = {ratio}"


def auc_table(figures: Figures, widths: list[int], ratios: list[int]) -> str:
    """AUC by width and ratio, mean (deviation), and below it from which width on the reference is reached."""
    rows = [
        [str(width), *(f"{figures[width, r]['mean']:.4f} ({figures[width, r]['sd']:.4f})" for r in ratios)]
        for width in widths
    ]
    reached = [reached_from(figures, r) for r in ratios]
    rows.append([f"reaches plain D = {REFERENCE} from", *("no width" if w is None else f"D = {w}" for w in reached)])
    rows.append(["ratio", *("-" if w is None else f"{REFERENCE / w:g}x" for w in reached)])
    return markdown(["D", *map(name_of, ratios)], rows)


def write_chart(path: Path, figures: Figures, widths: list[int], ratios: list[int], title: str) -> None:
    lines = [
        Line(
            name=name_of(ratio),
            points=[(width, figures[width, ratio]["mean"]) for width in widths],
            errors=[figures[width, ratio]["sd"] for width in widths],
        )
        for ratio in ratios
    ]
    label = f"{title}: test AUC against embedding width D, with and without MLET; the bars are deviations over seeds"
    chart = line_chart(lines, title=f"{title}: test AUC", x_title="embedding width D (log)", label=label, log_x=True)
    write_text(path, chart)


def jobs_of(options: argparse.Namespace, name: str, prepared: Path, ratios: list[int]) -> list[Job]:
    """Widths by ratios by seeds, in this order."""
    encoded = prepared / "encoded"
    model = ModelConfig(backbone=options.backbone, hidden=tuple(options.hidden), history=options.history)
    rare = rare_field(schema_of(name), EncodedData(encoded))
    return [
        Job(
            data=name,
            encoded=encoded,
            config=train_config(options, model, seed),
            width=width,
            inner_width=ratio * width,
            rare_field=rare,
        )
        for width, ratio, seed in itertools.product(options.widths, ratios, range(options.seeds))
    ]


def main() -> None:
    made = parser(
        __doc__.split("\n")[0], data=["kuairand_pure", "ml_latest_small"], epochs=4, patience=1, out="mlet.json"
    )
    made.add_argument("--backbone", default="deepfm")
    made.add_argument("--history", default="mean", help="history encoder; none leaves histories out")
    made.add_argument("--widths", type=int, nargs="+", default=[2, 4, 8, 16, 32], help=f"D; {REFERENCE} among them")
    made.add_argument("--ratios", type=int, nargs="+", default=[1, 2, 4, 8], help="inner widths k over D")
    made.add_argument("--images", type=Path, help="folder to draw a chart a data set into")
    options = made.parse_args()
    if REFERENCE not in options.widths:
        made.error(f"--widths must hold {REFERENCE}, the width to be reached")
    console = Console(stderr=True)
    prepared = prepare_all(options, console)
    ratios = [PLAIN, *options.ratios]
    by_data = {name: jobs_of(options, name, prepared[name], ratios) for name in options.data}
    jobs = list(itertools.chain(*by_data.values()))
    results = iter(run_all(jobs, options.out.with_suffix(".jsonl"), options.processes, console))
    tables: dict[str, Any] = {}
    for name, its_jobs in by_data.items():
        seeds: dict[tuple[int, int], list[dict]] = {}
        for job in its_jobs:
            seeds.setdefault((job.width, job.inner_width // job.width), []).append(next(results))
        first = next(iter(seeds.values()))[0]
        parts = {"all": {key: summary([r["test"]["auc"] for r in found]) for key, found in seeds.items()}}
        print(f"\n{name}, {options.backbone}, history {options.history}, {describe(options)}; test AUC, all rows:\n")
        print(auc_table(parts["all"], options.widths, ratios))
        if first["rare"]:
            parts["rare"] = {key: summary([r["rare"]["auc"] for r in found]) for key, found in seeds.items()}
            print(
                f"\nthe {first['rare']['rows']:,} test rows whose {its_jobs[0].rare_field} training saw fewer than "
                f"{RARE_BELOW} times:\n"
            )
            print(auc_table(parts["rare"], options.widths, ratios))
        if options.images:
            write_chart(options.images / f"mlet_{name}.svg", parts["all"], options.widths, ratios, name)
        tables[name] = [
            {
                "width": width,
                "inner_width": width * ratio,
                "auc": {part: figures[width, ratio] for part, figures in parts.items()},
                "stored_bytes": found[0]["stored_bytes"],
                "seconds": summary([r["seconds"] for r in found]),
                "best_epoch": summary([r["best_epoch"] for r in found]),
                "seeds": [{"test": r["test"], "rare": r["rare"]} for r in found],
            }
            for (width, ratio), found in seeds.items()
        ]
        tables[f"{name}_reached_from"] = {
            part: {name_of(ratio): reached_from(figures, ratio) for ratio in ratios} for part, figures in parts.items()
        }
    write_json(options.out, {"settings": settings(options), **tables})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
