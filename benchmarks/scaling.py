"""Rows a second of training against workers: threads of one process, and Ray Train workers that speak gloo.

    python benchmarks/scaling.py --workers 1 2

DeepFM on synthetic ids, the same batch for all workers together. A rate is what training itself tells of an epoch,
median over the epochs after the first. Start-up is what the run takes beyond its epochs: starting Ray and its workers,
building the model, validating 4,096 rows an epoch, fetching the result.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from libraries import machine, settings
from narrowcast_run import rates
from rich.console import Console
from rich.table import Table
from synthetic import write_encoded

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.ray_train import ray_fit
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

NUM_FIELDS = 39


def timed(train: Callable[[], Any], num_rows: int) -> dict[str, Any]:
    """The rates that `train` prints, and its seconds beyond its epochs."""
    printed = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        train()
    seconds = time.perf_counter() - started
    epochs = rates(printed.getvalue().splitlines())
    start_up = seconds - sum(num_rows / rate for rate in epochs)
    return {"rows_per_second": median(epochs[1:]), "epochs": epochs, "start_up_seconds": start_up}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="Ray Train workers")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()], help="of the single process")
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--distribution", choices=("power", "uniform"), default="power")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400], help="widths of the hidden layers")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=25, help="steps of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="the first is not counted")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"), help="JSON to write")
    chosen = parser.parse_args()
    config = TrainConfig(
        model=ModelConfig(hidden=tuple(chosen.hidden)),
        batch_size=chosen.batch_size,
        epochs=chosen.epochs,
        patience=chosen.epochs,
        deterministic=False,
    )
    num_rows = chosen.steps * chosen.batch_size
    rows: dict[str, dict[str, Any]] = {}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = EncodedData(
            write_encoded(
                Path(scratch) / "encoded",
                num_ids=chosen.ids,
                num_fields=NUM_FIELDS,
                num_rows=num_rows,
                distribution=chosen.distribution,
            )
        )
        plan = full_plan(data.layout.table_rows, chosen.width)
        for threads in chosen.threads:
            with console.status(f"one process, {threads} threads"):
                torch.set_num_threads(threads)
                rows[f"one process, threads: {threads}"] = timed(lambda: fit(data, plan, config), num_rows)
        for workers in chosen.workers:
            with console.status(f"Ray, {workers} workers"):
                shared = replace(config, num_workers=workers)
                rows[f"Ray, workers: {workers}"] = timed(lambda c=shared: ray_fit(data, plan, c), num_rows)
    first = next(iter(rows.values()))["rows_per_second"]
    table = Table("training", "rows/s, median", "of the first", "start-up, s", title=f"{chosen.ids:,} ids")
    for name, row in rows.items():
        rate = row["rows_per_second"]
        table.add_row(name, f"{rate:,.0f}", f"{rate / first:.2f}x", f"{row['start_up_seconds']:.1f}")
    Console().print(table)
    write_json(chosen.out, {"machine": machine(), "settings": settings(chosen), "rows": rows})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
