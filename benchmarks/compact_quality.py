"""Quality of the compact model beside the full one: search, retrain and pack, over seeds, all in this process.

    python benchmarks/compact_quality.py --data RAW_DIR --schema ml_100k --seeds 3 --budget 1/10 --bits 8 --method pep

The same data, split, backbone, optimiser and epochs on both sides; a seed gives the initial values and the row order of
both. Search and early stopping read validation, the table below reads test. The compact model is the packed one.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from libraries import settings
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data import prepare_schema
from narrowcast.components.compact.pack import data_bytes, pack
from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.schema import Schema
from narrowcast.components.search.run import SearchConfig, search_plan
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.metrics import auc
from narrowcast.components.train.run import TrainConfig, train_from_plan, train_full
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json


def measure(prepared: Path, schema: Schema, options: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """One seed's test AUCs, the packed file's bytes, and the ratio to the full tables."""
    encoded = prepared / "encoded"
    training = TrainConfig(
        model=ModelConfig(backbone=options.backbone), batch_size=options.batch_size, seed=seed, epochs=options.epochs
    )
    search = SearchConfig(
        training=training,
        width=options.width,
        method=options.method,
        budget=options.budget,
        bits=options.bits,
        num_trials=options.trials,
    )
    train_full(encoded, training, folder / "full", width=options.width, inner_width=0)
    search_plan(encoded, search, folder / "plan")
    train_from_plan(encoded, folder / "plan", training, folder / "compact")
    pack(folder / "compact", encoded, prepared / "frame", schema, folder / "packed")
    test = EncodedData(encoded).split("test")
    packed = PackedModel.load(folder / "packed")
    scores = np.concatenate([packed.batch_scores(batch) for batch, _ in test.batches(8192)])
    full = read_json(folder / "full" / "metrics.json")
    stored = data_bytes(folder / "packed" / "tables.safetensors")
    return {
        "seed": seed,
        "full_auc": full["test"]["auc"],
        "compact_auc": auc(test.label_B, scores),
        "full_bytes": full["stored_bytes"],
        "compact_bytes": stored,
        "ratio": full["stored_bytes"] / stored,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--schema", required=True, help="shipped schema name, or a YAML file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="pep")
    parser.add_argument("--budget", default="1/10")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--prepared", type=Path, help="folder to keep the encoded data in and to find them again")
    parser.add_argument("--out", type=Path, default=Path("compact_quality.json"), help="JSON to write")
    options = parser.parse_args()
    schema = Schema.load(options.schema)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = options.prepared or Path(scratch) / "prepared"
        with contextlib.redirect_stdout(None):
            if not (prepared / "encoded").is_dir():
                prepare_schema(options.data, schema, prepared)
            rows = [
                measure(prepared, schema, options, seed, Path(scratch) / str(seed))
                for seed in track(range(options.seeds), "seeds", console=console)
            ]
    losses = [row["full_auc"] - row["compact_auc"] for row in rows]
    table = Table("seed", "full AUC", "compact AUC", "loss", "full bytes", "compact bytes", "ratio", title=schema.name)
    for row, loss in zip(rows, losses, strict=True):
        table.add_row(
            str(row["seed"]),
            f"{row['full_auc']:.4f}",
            f"{row['compact_auc']:.4f}",
            f"{loss:+.4f}",
            f"{row['full_bytes']:,}",
            f"{row['compact_bytes']:,}",
            f"{row['ratio']:.1f}x",
        )
    spread = stdev(losses) if len(losses) > 1 else 0.0
    summary = {
        "mean_auc_loss": mean(losses),
        "sd_auc_loss": spread,
        "least_ratio": min(row["ratio"] for row in rows),
    }
    Console().print(table)
    print(
        f"mean AUC loss {summary['mean_auc_loss']:+.4f} (sd {spread:.4f}), "
        f"at least {summary['least_ratio']:.1f}x fewer bytes"
    )
    write_json(options.out, {"settings": settings(options), "seeds": rows, **summary})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
