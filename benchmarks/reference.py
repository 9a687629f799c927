"""DeepFM at the reference setting: narrowcast beside FuxiCTR and DeepCTR-Torch on the same rows, ids and labels.

    python benchmarks/reference.py --raw ../shared/data/criteo_137k --peers-python PEERS/bin/python --seeds 5

criteo_137k, random 80/10/10, integers bucketed by floor(log^2), an id needs two training rows, width 16, hidden layers
400, 400, 400, batch 4096, Adam at 1e-3, 3 epochs of which the one best on validation counts. A seed gives the initial
values and the row order; the split is the same for all. Every library is trained with each penalty on its embeddings
that `--l2` lists; the penalty with the best mean AUC on *validation* is its result on test. Penalties are in the
library's own scale: FuxiCTR's `embedding_regularizer` (0 in its DeepFM template) and narrowcast's `weight_decay` are
l2/2 times the squared norm beside the mean loss, narrowcast's of the rows a batch touches, FuxiCTR's of all;
DeepCTR-Torch's (1e-5 by default) is l2 times the squared norm beside the summed loss. See libraries.py for PEERS.
"""

import argparse
import contextlib
import io
import tempfile
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from libraries import TITLES, add_options, machine, run
from options import PREPARED, settings
from reference_data import prepare_reference
from rich.console import Console
from rich.progress import track
from rich.table import Table

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.metrics import auc, logloss
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

L2 = {"narrowcast": [0, 1e-4, 1e-3, 1e-2], "fuxictr": [0, 1e-4, 1e-3, 1e-2], "deepctr": [1e-5, 1e-2, 1]}


def measure(library: str, l2: float, seed: int, data: EncodedData, chosen: argparse.Namespace) -> dict[str, float]:
    """AUC and logloss of one training on validation and test."""
    figures: dict[str, float] = {"seed": seed}
    with tempfile.TemporaryDirectory() as scores:
        extra = ("--epochs", chosen.epochs, "--l2", l2, "--seed", seed, "--scores", scores)
        run(library, data.directory, chosen, extra)
        for split in ("validation", "test"):
            label_B, probability_B = data.split(split).label_B, np.load(Path(scores) / f"{split}.npy")
            figures[f"{split}_auc"] = auc(label_B, probability_B)
            figures[f"{split}_logloss"] = logloss(label_B, probability_B)
    return figures


def summarise(library: str, l2: float, seeds: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and deviation over seeds."""
    row: dict[str, Any] = {"library": library, "l2": l2, "seeds": seeds}
    for name in ("validation_auc", "test_auc", "test_logloss"):
        values = [figures[name] for figures in seeds]
        row[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/criteo_137k"), help="folder of the raw file")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="folder that keeps prepared data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--l2", nargs="+", default=[], metavar="LIBRARY=L2[,L2...]", help=f"in place of {L2}")
    parser.add_argument("--out", type=Path, default=Path("reference.json"), help="JSON to write")
    chosen = parser.parse_args()
    l2 = L2 | {name: [float(v) for v in values.split(",")] for name, _, values in (g.partition("=") for g in chosen.l2)}
    console = Console()
    with contextlib.redirect_stdout(io.StringIO()):
        data = EncodedData(prepare_reference(chosen.prepared, chosen.raw))
    trainings = [(name, value, seed) for seed, name in product(range(chosen.seeds), chosen.libraries) for value in l2[name]]
    measured: dict[tuple[str, float], list[dict[str, float]]] = {}
    for name, value, seed in track(trainings, "trainings", console=Console(stderr=True)):
        measured.setdefault((name, value), []).append(measure(name, value, seed, data, chosen))
    rows = [summarise(name, value, seeds) for (name, value), seeds in measured.items()]
    best = {
        name: max((r for r in rows if r["library"] == name), key=lambda r: r["validation_auc"]["mean"])
        for name in chosen.libraries
    }
    table = Table("library", "L2", "validation AUC", "test AUC", "test logloss", "", title="DeepFM on criteo_137k")
    for row in rows:
        figures = [f"{row[k]['mean']:.4f} ({row[k]['sd']:.4f})" for k in ("validation_auc", "test_auc", "test_logloss")]
        chosen_one = "chosen on validation" if best[row["library"]] is row else ""
        table.add_row(TITLES[row["library"]], f"{row['l2']:g}", *figures, chosen_one)
    console.print(table)
    result: dict[str, Any] = {"machine": machine(), "settings": settings(chosen), "rows": rows}
    if {"narrowcast", "fuxictr"} <= best.keys():
        difference = best["narrowcast"]["test_auc"]["mean"] - best["fuxictr"]["test_auc"]["mean"]
        result["target"] = {"difference": difference, "at_least": 0.0, "met": difference >= 0}
        console.print(
            f"test AUC of narrowcast less FuxiCTR's, mean of {chosen.seeds} seeds: {difference:+.4f} (target: at least 0): "
            f"{'met' if difference >= 0 else 'not met'}"
        )
    write_json(chosen.out, result)


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
