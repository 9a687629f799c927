"""What a history encoder is worth: test AUC and seconds an epoch, over seeds, with each encoder and without a history.

    python benchmarks/history.py --data RAW_DIR --schema kuairand_pure --seeds 5

The same data, split, backbone, widths, optimiser and epochs for all; a seed gives the tables' initial values and the
order of rows to every encoder alike. Early stopping reads validation, the table reads test.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from runner import Job, Result, run_all, summary

from data import prepare_schema
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.schema import HISTORY, Schema
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.histories import histories
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

ENCODERS = ("none", "mean", "din", "append", "concat")
TRANSFORMERS = ("append", "concat")
METRICS = {"auc": "test AUC", "gauc": "test gAUC"}


def job(encoded: Path, encoder: str, seed: int, options: argparse.Namespace) -> Job:
    transformer = {"num_layers": options.layers, "num_heads": options.heads, "model_width": options.model_width}
    model = ModelConfig(
        backbone=options.backbone,
        history=encoder,
        history_settings=transformer if encoder in TRANSFORMERS else {},
    )
    training = TrainConfig(
        model=model, epochs=options.epochs, patience=options.patience, batch_size=options.batch_size, seed=seed
    )
    return Job(data=options.schema, encoded=encoded, config=training, width=options.width)


def figures(results: Sequence[Result], without: Sequence[Result] | None) -> dict[str, Any]:
    """An encoder's seeds in figures; `over_none` pairs the seeds with those of no history."""
    made: dict[str, Any] = {name: summary([result["test"][name] for result in results]) for name in METRICS}
    made["best_epoch"] = summary([result["best_epoch"] for result in results])
    made["seconds_per_epoch"] = summary([result["seconds"] / result["epochs"] for result in results])
    if without:
        pairs = list(zip(results, without, strict=True))
        made["over_none"] = {
            name: summary([one["test"][name] - other["test"][name] for one, other in pairs]) for name in METRICS
        }
    return made


def sentences(by_encoder: dict[str, dict[str, Any]]) -> list[str]:
    """What the figures say of append beside concat, and of both beside no history."""
    said = []
    for metric, label in METRICS.items():
        if by_encoder.keys() >= set(TRANSFORMERS):
            append, concat = by_encoder["append"][metric], by_encoder["concat"][metric]
            difference, limit = append["mean"] - concat["mean"], concat["sd"]
            within = "within" if abs(difference) <= limit else "not within"
            verdict = f"{within} one standard deviation of concat's seeds ({limit:.4f})" if limit else "for one seed"
            said.append(f"append's {label} differs from concat's by {difference:+.4f}, {verdict}.")
        for name in TRANSFORMERS:
            if "over_none" in by_encoder.get(name, {}):
                said.append(f"{name}'s {label} is {shown(by_encoder[name]['over_none'][metric], '+')} over no history.")
    return said


def shown(figure: dict[str, float], sign: str = "") -> str:
    """Mean and standard deviation over the seeds; the mean alone for one seed."""
    deviation = f" ± {figure['sd']:.4f}" if figure["sd"] else ""
    return f"{figure['mean']:{sign}.4f}{deviation}"


def table_of(by_encoder: dict[str, dict[str, Any]], title: str) -> Table:
    table = Table("history", "test AUC", "over none", "test gAUC", "epoch", "s/epoch", title=title, box=SIMPLE_HEAD)
    for name, row in by_encoder.items():
        table.add_row(
            name,
            shown(row["auc"]),
            shown(row["over_none"]["auc"], "+") if "over_none" in row else "",
            shown(row["gauc"]),
            f"{row['best_epoch']['mean']:.1f}",
            f"{row['seconds_per_epoch']['mean']:.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--schema", default="kuairand_pure", help="shipped schema name, or a YAML file")
    parser.add_argument("--encoders", nargs="+", choices=histories(), default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--width", type=int, default=16, help="embedding width")
    parser.add_argument("--layers", type=int, default=2, help="the transformers' blocks")
    parser.add_argument("--heads", type=int, default=2, help="the transformers' heads")
    parser.add_argument("--model-width", type=int, default=32, help="the transformers' width")
    parser.add_argument("--epochs", type=int, default=4, help="at most; the one best on validation counts")
    parser.add_argument("--patience", type=int, default=1, help="epochs without a better validation AUC")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings side by side, one thread each")
    parser.add_argument(
        "--prepared", type=Path, default=Path(".narrowcast") / "benchmarks", help="folder that keeps the prepared data"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("history.json"), help="JSON to write; results so far lie beside it, .jsonl"
    )
    options = parser.parse_args()
    console = Console(stderr=True)
    schema = Schema.load(options.schema)
    prepared = options.prepared / schema.feature_service
    if not prepared.is_dir():
        with console.status(f"preparing {schema.name}"), contextlib.redirect_stdout(io.StringIO()):
            prepare_schema(options.data, schema, prepared)
    layout = EncodedData(prepared / "encoded").layout
    if HISTORY not in layout.sequences:
        parser.error(f"schema '{schema.name}' has no history: add `history` to it, or name another schema")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    jobs = [job(prepared / "encoded", name, seed, options) for name in options.encoders for seed in seeds]
    results = run_all(jobs, options.out.with_suffix(".jsonl"), options.processes, console)
    of_encoder = {name: results[i * options.seeds : (i + 1) * options.seeds] for i, name in enumerate(options.encoders)}
    by_encoder = {
        name: figures(found, of_encoder.get("none") if name != "none" else None) for name, found in of_encoder.items()
    }
    said = sentences(by_encoder)
    title = f"{schema.name}, {options.backbone}, seeds: {options.seeds}; s/epoch: all seconds over the epochs run"
    Console().print(table_of(by_encoder, title))
    for sentence in said:
        print(sentence)
    settings = {
        key: value for key, value in vars(options).items() if key not in ("data", "prepared", "out", "processes")
    }
    write_json(options.out, {"settings": settings, "encoders": by_encoder, "sentences": said, "runs": of_encoder})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
