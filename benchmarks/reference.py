"""DeepFM at the reference setting: narrowcast beside FuxiCTR and DeepCTR-Torch on the same rows, ids and labels.

    python benchmarks/reference.py --raw ../shared/data/criteo_137k --peers-python PEERS/bin/python --seeds 5

criteo_137k, random 80/10/10, integers bucketed by floor(log^2), an id needs two training rows, width 16, hidden layers
400, 400, 400, batch 4096, Adam at 1e-3, 3 epochs of which the one best on validation counts. A seed gives the initial
values and the row order; the split is the same for all. Every library is trained with each of its `SETTINGS`, the
first being its default, and is compared twice: at its default, and at the setting with the best mean AUC on
*validation*. Penalties (`--l2`) are in the library's own scale: FuxiCTR's `embedding_regularizer` and narrowcast's
`weight_decay` are l2/2 times the squared norm beside the mean loss, narrowcast's of the rows that a batch touches,
FuxiCTR's of all; DeepCTR-Torch's is l2 times the squared norm beside the summed loss. See libraries.py for PEERS.
"""

import argparse
import contextlib
import io
import json
import tempfile
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from libraries import TITLES, add_options, machine, run, settings
from options import PREPARED
from reference_data import prepare_reference
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runner import read_journal

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.metrics import auc, logloss
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

ADAGRAD = "--table-optimiser rowwise_adagrad --table-learning-rate"
SETTINGS = {
    "narrowcast": ["--l2 1e-3", "--l2 0", f"{ADAGRAD} 1e-2 --l2 0", f"{ADAGRAD} 1e-2 --l2 0 --init-std 1e-4"],
    "fuxictr": ["--l2 0", "--l2 1e-4", "--l2 1e-3", "--l2 1e-2", "--l2 1e-1"],
    "deepctr": ["--l2 1e-5", "--l2 1e-2", "--l2 1"],
}
"""Options of the libraries' scripts; the first is the library's default (FuxiCTR's: that of its DeepFM template)."""


def measure(library: str, setting: str, seed: int, data: EncodedData, chosen: argparse.Namespace) -> dict[str, float]:
    """AUC and logloss of one training on validation and test."""
    figures: dict[str, float] = {"seed": seed}
    with tempfile.TemporaryDirectory() as scores:
        extra = ("--epochs", chosen.epochs, "--seed", seed, "--scores", scores, *setting.split())
        run(library, data.directory, chosen, extra)
        for split in ("validation", "test"):
            label_B, probability_B = data.split(split).label_B, np.load(Path(scores) / f"{split}.npy")
            figures[f"{split}_auc"] = auc(label_B, probability_B)
            figures[f"{split}_logloss"] = logloss(label_B, probability_B)
    return figures


def measure_all(data: EncodedData, chosen: argparse.Namespace) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Every library's seeds by setting; each training's figures are kept in a journal as they come, and taken from
    there when they are found there."""
    tried = {name: SETTINGS[name][: 1 if chosen.defaults else None] for name in chosen.libraries}
    journal = chosen.out.with_suffix(".jsonl")
    done = read_journal(journal)
    shared = {key: value for key, value in settings(chosen).items() if key not in ("libraries", "seeds", "defaults")}
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    trainings = [(name, s, seed) for seed, name in product(range(chosen.seeds), tried) for s in tried[name]]
    for name, setting, seed in track(trainings, "trainings", console=Console(stderr=True)):
        key = json.dumps({**shared, "library": name, "setting": setting, "seed": seed}, sort_keys=True)
        if key not in done:
            done[key] = measure(name, setting, seed, data, chosen)
            with journal.open("a") as stream:
                stream.write(json.dumps({"key": key, "result": done[key]}) + "\n")
        measured.setdefault((name, setting), []).append(done[key])
    return measured


def summarise(library: str, setting: str, seeds: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and deviation over seeds."""
    row: dict[str, Any] = {"library": library, "setting": setting, "seeds": seeds}
    for name in ("validation_auc", "test_auc", "test_logloss"):
        values = [figures[name] for figures in seeds]
        row[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
    return row


def compare(what: str, rows: dict[str, dict[str, Any]], console: Console) -> dict[str, Any]:
    """Whether narrowcast's mean test AUC is at least FuxiCTR's, `rows` being one of each library."""
    difference = rows["narrowcast"]["test_auc"]["mean"] - rows["fuxictr"]["test_auc"]["mean"]
    met = difference >= 0
    verdict = "met" if met else "not met"
    console.print(f"{what}: test AUC of narrowcast less FuxiCTR's {difference:+.4f} (target: at least 0): {verdict}")
    return {"difference": difference, "at_least": 0.0, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/criteo_137k"), help="folder of the raw file")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="folder that keeps prepared data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--defaults", action="store_true", help="only the libraries' defaults")
    parser.add_argument(
        "--out", type=Path, default=Path("reference.json"), help="JSON to write; results so far lie beside it, .jsonl"
    )
    chosen = parser.parse_args()
    console = Console()
    with contextlib.redirect_stdout(io.StringIO()):
        data = EncodedData(prepare_reference(chosen.prepared, chosen.raw))
    measured = measure_all(data, chosen)
    rows = [summarise(name, setting, seeds) for (name, setting), seeds in measured.items()]
    by_library = {name: [row for row in rows if row["library"] == name] for name in chosen.libraries}
    best = {name: max(own, key=lambda row: row["validation_auc"]["mean"]) for name, own in by_library.items()}
    title = f"DeepFM on criteo_137k, mean (deviation) of {chosen.seeds} seeds"
    table = Table("library", "setting", "validation AUC", "test AUC", "test logloss", "", title=title)
    for row in rows:
        figures = [f"{row[k]['mean']:.4f} ({row[k]['sd']:.4f})" for k in ("validation_auc", "test_auc", "test_logloss")]
        mark = "best on validation" if best[row["library"]] is row else ""
        table.add_row(TITLES[row["library"]], row["setting"], *figures, mark)
    console.print(table)
    result: dict[str, Any] = {"machine": machine(), "settings": settings(chosen), "rows": rows}
    if {"narrowcast", "fuxictr"} <= by_library.keys():
        defaults = {name: own[0] for name, own in by_library.items()}
        result["defaults"] = compare("both at their defaults", defaults, console)
        result["best"] = compare("both at their best on validation", best, console)
    write_json(chosen.out, result)


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
