"""Options and tables that the benchmarks of many trainings share."""

import argparse
import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data import NAMES, prepare
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig

PREPARED = Path(".narrowcast") / "benchmarks"


def parser(description: str, *, data: Sequence[str], epochs: int, patience: int, out: str) -> argparse.ArgumentParser:
    """Options on data, seeds, training and output; `data` is the default choice among `data.NAMES`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--data", nargs="+", choices=NAMES, default=list(data), help="data sets to train on")
    made.add_argument("--raw", nargs="+", default=[], metavar="NAME=DIR", help="raw files in other folders than usual")
    made.add_argument("--prepared", type=Path, default=PREPARED, help="folder that keeps prepared data")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings side by side, one thread each")
    made.add_argument("--hidden", type=int, nargs="+", default=[128, 64], help="widths of the hidden layers")
    made.add_argument("--batch-size", type=int, default=2048)
    made.add_argument("--epochs", type=int, default=epochs, help="at most; the one best on validation counts")
    made.add_argument("--patience", type=int, default=patience, help="epochs without a better validation AUC")
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--weight-decay", type=float, default=1e-3, help="L2 penalty on the embedding rows")
    made.add_argument("--out", type=Path, default=Path(out), help="JSON to write; results so far lie beside it, .jsonl")
    return made


def prepare_all(options: argparse.Namespace, console: Console) -> dict[str, Path]:
    """The prepared folder of every data set asked for, by name."""
    raw = {name: Path(folder) for name, _, folder in (given.partition("=") for given in options.raw)}
    found = {}
    for name in options.data:
        with console.status(f"preparing {name}"), contextlib.redirect_stdout(io.StringIO()):
            found[name] = prepare(name, options.prepared, raw.get(name))
    return found


def train_config(options: argparse.Namespace, model: ModelConfig, seed: int) -> TrainConfig:
    return TrainConfig(
        model=model,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        patience=options.patience,
        seed=seed,
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on, for the JSON: the options but paths and the number of processes."""
    left_out = ("raw", "prepared", "out", "images", "processes")
    return {key: value for key, value in vars(options).items() if key not in left_out}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(options: argparse.Namespace) -> str:
    """The training settings in a line, to stand above a table."""
    tables = TrainConfig().table_optimiser.replace("_", " ")
    hidden = ", ".join(map(str, options.hidden))
    return (
        f"hidden layers ({hidden}), batch {options.batch_size}, {tables} on tables and Adam on the rest, both at "
        f"{options.learning_rate:g}, "
        f"L2 {options.weight_decay:g} on embedding rows, at most {options.epochs} epochs "
        f"(patience {options.patience}), {options.seeds} seeds"
    )
