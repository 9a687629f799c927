"""Quality of the backbones, each with plain embedding tables and with MLET, over seeds.

    python benchmarks/quality.py --seeds 5

The same data, split, width, hidden layers, optimiser and epochs for all; a seed gives the initial values and the row
order. The epoch is chosen on validation, the table reads test. Deviations are over seeds.
"""

import itertools
from typing import Any

from options import describe, markdown, parser, prepare_all, settings, train_config
from rich.console import Console
from runner import Job, Result, run_all, summary

from data import schema_of
from narrowcast.components.train.config import ModelConfig
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

BACKBONES: dict[str, dict[str, Any]] = {
    "deepfm": {},
    "dcnv2": {"num_cross": 2},
    "autoint": {"num_layers": 2, "attention_width": 32},
    "adrec": {"num_layers": 2, "num_heads": 2, "mask": "learned"},
}
"""Every backbone's own settings; two layers of crosses, attention or blocks each."""
FIGURES = ("auc", "logloss", "gauc")


def table(rows: list[dict]) -> str:
    """One data set's rows as Markdown, mean (deviation)."""
    lines = []
    for row in rows:
        figures = [f"{row[name]['mean']:.4f} ({row[name]['sd']:.4f})" if row[name] else "-" for name in FIGURES]
        gain = f"{row['gain']['mean']:+.4f} ({row['gain']['sd']:.4f})" if row["gain"] else ""
        name = f"{row['backbone']}, MLET k = {row['inner_width']}" if row["inner_width"] else row["backbone"]
        lines.append([name, *figures, gain, f"{row['best_epoch']['mean']:.1f}", f"{row['seconds']['mean']:.0f}"])
    head = ["model", "test AUC", "logloss", "gAUC", "AUC gained by MLET", "best epoch", "s per training"]
    return markdown(head, lines)


def summarise(job: Job, results: list[Result], plain: list[Result] | None) -> dict:
    """Figures over one model's seeds; `plain`, the same model's without MLET, gives the gain seed by seed."""
    has_users = schema_of(job.data).user is not None
    gains = [new["test"]["auc"] - old["test"]["auc"] for new, old in zip(results, plain or [], strict=bool(plain))]
    return {
        "data": job.data,
        "backbone": job.config.model.backbone,
        "inner_width": job.inner_width,
        **{
            name: summary([result["test"][name] for result in results]) if name != "gauc" or has_users else None
            for name in FIGURES
        },
        "gain": summary(gains) if plain else None,
        "best_epoch": summary([result["best_epoch"] for result in results]),
        "seconds": summary([result["seconds"] for result in results]),
        "stored_bytes": results[0]["stored_bytes"],
        "seeds": [result["test"] for result in results],
    }


def main() -> None:
    made = parser(
        __doc__.split("\n")[0],
        data=["criteo_137k", "kuairand_pure", "ml_latest_small", "ml_100k"],
        epochs=4,
        patience=1,
        out="quality.json",
    )
    made.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    made.add_argument("--width", type=int, default=16, help="D")
    made.add_argument("--ratio", type=int, default=4, help="MLET's inner width k over D")
    options = made.parse_args()
    console = Console(stderr=True)
    prepared = prepare_all(options, console)
    variants = list(itertools.product(options.data, options.backbones, (0, options.ratio * options.width)))
    jobs = []
    for name, backbone, inner_width in variants:
        encoded = prepared[name] / "encoded"
        model = ModelConfig(backbone=backbone, hidden=tuple(options.hidden), settings=BACKBONES[backbone])
        jobs += [
            Job(
                data=name,
                encoded=encoded,
                config=train_config(options, model, seed),
                width=options.width,
                inner_width=inner_width,
            )
            for seed in range(options.seeds)
        ]
    results = run_all(jobs, options.out.with_suffix(".jsonl"), options.processes, console)
    by_variant = {variant: results[i * options.seeds : (i + 1) * options.seeds] for i, variant in enumerate(variants)}
    rows = []
    for i, (name, backbone, inner_width) in enumerate(variants):
        plain = by_variant[name, backbone, 0] if inner_width else None
        rows.append(summarise(jobs[i * options.seeds], by_variant[name, backbone, inner_width], plain))
    for name in options.data:
        print(f"\n{name}: width {options.width}, {describe(options)}\n")
        print(table([row for row in rows if row["data"] == name]))
    write_json(options.out, {"settings": {**settings(options), "backbone_settings": BACKBONES}, "rows": rows})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
