"""Rows a second of training: narrowcast beside FuxiCTR and DeepCTR-Torch, the libraries by turns in the same run.

    python benchmarks/throughput.py --peers-python PEERS/bin/python --repeats 3

DeepFM of the same width, hidden layers and batch on the same arrays, no penalty on embeddings (which is quickest for
all), Adam on each side as the library does it: FuxiCTR and DeepCTR-Torch update every row of every table in every step,
narrowcast those that the batch touches. Theirs is torch's plain Adam, which is many times slower a row than its fused
one. Two vocabularies: criteo_137k at the reference setting, and synthetic ids, 39 fields of which 8 hold nearly all
ids, id i of a field drawn with probability about 1/i. An epoch's seconds are training alone, with the library's own
loop and loader; a process's first epoch is a warm-up. See libraries.py for PEERS.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from libraries import TITLES, add_options, machine, run, settings
from options import PREPARED
from reference_data import prepare_reference
from rich.console import Console
from rich.progress import track
from rich.table import Table
from synthetic import write_encoded

from narrowcast.components.data.encoded import EncodedData
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

TARGETS = {"criteo": 1.3, "synthetic": 5.0}
"""Least ratio of narrowcast's rows per second to FuxiCTR's."""
NUM_FIELDS = 39


def measure(data: str, encoded: Path, repeats: int, chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows a second by library: the median over the repeats of each repeat's median epoch."""
    found: dict[str, list[float]] = {name: [] for name in chosen.libraries}
    versions = {}
    turns = [name for _ in range(repeats) for name in chosen.libraries]
    for name in track(turns, data, console=Console(stderr=True)):
        loader = ("--loader-workers", chosen.loader_workers) if name == "fuxictr" else ()
        result = run(name, encoded, chosen, ("--epochs", 1 + chosen.epochs, *loader))
        found[name].append(result["rows"] / median(result["epoch_seconds"][1:]))
        versions[name] = result["version"]
    return {
        name: {"version": versions[name], "rows_per_second": median(rates), "repeats": rates}
        for name, rates in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--data", nargs="+", choices=tuple(TARGETS), default=list(TARGETS))
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/criteo_137k"), help="folder of the raw file")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="folder that keeps prepared data")
    parser.add_argument("--repeats", type=int, default=3, help="processes a library")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs a process, after one that warms up")
    parser.add_argument("--ids", type=int, default=5_000_000, help="ids of all synthetic tables together")
    parser.add_argument("--distribution", choices=("power", "uniform"), default="power", help="of synthetic ids")
    parser.add_argument("--steps", type=int, default=25, help="steps of a synthetic epoch")
    parser.add_argument("--loader-workers", type=int, default=1, help="processes of FuxiCTR's loader (its default: 1)")
    parser.add_argument("--out", type=Path, default=Path("throughput.json"), help="JSON to write")
    chosen = parser.parse_args()
    console = Console()
    result: dict[str, Any] = {"machine": machine(), "settings": settings(chosen)}
    for data in chosen.data:
        with tempfile.TemporaryDirectory() as scratch:
            if data == "criteo":
                with contextlib.redirect_stdout(io.StringIO()):
                    encoded = prepare_reference(chosen.prepared, chosen.raw)
            else:
                encoded = write_encoded(
                    Path(scratch) / "encoded",
                    num_ids=chosen.ids,
                    num_fields=NUM_FIELDS,
                    num_rows=chosen.steps * chosen.batch_size,
                    distribution=chosen.distribution,
                )
            num_ids = sum(EncodedData(encoded).layout.table_rows.values())
            rates = measure(data, encoded, chosen.repeats, chosen)
        result[data] = {"ids": num_ids, "libraries": rates}
        console.print(_table(f"{data}, {num_ids:,} ids, {chosen.threads} threads", rates))
        if {"narrowcast", "fuxictr"} <= rates.keys():
            ratio = rates["narrowcast"]["rows_per_second"] / rates["fuxictr"]["rows_per_second"]
            met = ratio >= TARGETS[data]
            result[data]["target"] = {"ratio": ratio, "at_least": TARGETS[data], "met": met}
            verdict = "met" if met else "not met"
            console.print(f"narrowcast over FuxiCTR: {ratio:.2f}x (target: at least {TARGETS[data]}x): {verdict}")
    write_json(chosen.out, result)


def _table(title: str, rates: dict[str, dict[str, Any]]) -> Table:
    table = Table("library", "version", "rows/s, median", "least", "most", "narrowcast is", title=title)
    own = rates.get("narrowcast", {}).get("rows_per_second")
    for name, row in rates.items():
        ratio = f"{own / row['rows_per_second']:.2f}x" if own and name != "narrowcast" else ""
        figures = (row["rows_per_second"], min(row["repeats"]), max(row["repeats"]))
        table.add_row(TITLES[name], row["version"], *(f"{figure:,.0f}" for figure in figures), ratio)
    return table


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
