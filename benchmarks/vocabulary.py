"""Step time of training against the vocabulary: narrowcast, and dense Adam over all rows as the control.

    python benchmarks/vocabulary.py --ids 100000 1000000 10000000

DeepFM on synthetic ids, 39 fields of which 8 hold nearly all ids, the same batch at every vocabulary. `uniform` ids are
the worst case, as hardly a row is met twice; `power` draws id i with probability about 1/i. All vocabularies are
trained by turns in one process, an epoch of a few steps each; a step's time is its epoch's over the number of steps.
The control is the same model with one `torch.nn.Embedding` and torch's fused Adam on all parameters.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from libraries import machine, settings
from rich.console import Console
from rich.progress import track
from rich.table import Table
from synthetic import write_encoded
from torch import nn

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, deterministic, fresh_state, train_epoch
from narrowcast.components.train.heads import build_head
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

TARGET = 1.5
"""Most that a step at the largest vocabulary may take, as a multiple of one at the smallest."""
NUM_FIELDS = 39


def own_epoch(data: EncodedData, width: int, config: TrainConfig) -> Callable[[], None]:
    plan = full_plan(data.layout.table_rows, width)
    state = fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)
    train = data.split("train")

    def epoch() -> None:
        train_epoch(state, train, config)

    return epoch


def dense_epoch(data: EncodedData, width: int, config: TrainConfig) -> Callable[[], None]:
    """The control's epoch: every row of the table has a gradient and is updated."""
    rows = np.array(list(data.layout.table_rows.values()))
    starts_F = torch.from_numpy(np.cumsum(rows) - rows)
    table = nn.Embedding(int(rows.sum()), width)
    nn.init.normal_(table.weight, std=0.01)
    head = build_head(config.model.head, len(rows), width, 0)
    optimiser = torch.optim.Adam([*table.parameters(), *head.parameters()], config.learning_rate, fused=True)
    train = data.split("train")

    def epoch() -> None:
        for batch, label_B in train.batches(config.batch_size):
            logit_B = head(table(torch.from_numpy(batch.ids_BF) + starts_F), torch.from_numpy(batch.dense_BN))
            loss = nn.functional.binary_cross_entropy_with_logits(logit_B, torch.from_numpy(label_B).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return epoch


def measure(
    epochs: dict[tuple[str, int], Callable[[], None]], steps: int, chosen: argparse.Namespace
) -> dict[tuple[str, int], list[float]]:
    """Milliseconds a step, by turns."""
    found: dict[tuple[str, int], list[float]] = {key: [] for key in epochs}
    for turn in track(range(chosen.warmup + chosen.repeats), "turns", console=Console(stderr=True)):
        for key, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            if turn >= chosen.warmup:
                found[key].append((time.perf_counter() - started) / steps * 1000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ids", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--control-ids", type=int, default=1_000_000, help="largest vocabulary of the control; 0: none")
    parser.add_argument("--distribution", choices=("uniform", "power"), default="uniform")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400], help="widths of the hidden layers")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=5, help="steps of an epoch")
    parser.add_argument("--warmup", type=int, default=2, help="turns that are not timed")
    parser.add_argument("--repeats", type=int, default=7, help="turns that are")
    parser.add_argument("--out", type=Path, default=Path("vocabulary.json"), help="JSON to write")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    config = TrainConfig(
        model=ModelConfig(hidden=tuple(chosen.hidden)), batch_size=chosen.batch_size, deterministic=False
    )
    with tempfile.TemporaryDirectory() as scratch:
        epochs = {}
        for num_ids in sorted(chosen.ids):
            folder = write_encoded(
                Path(scratch) / str(num_ids),
                num_ids=num_ids,
                num_fields=NUM_FIELDS,
                num_rows=chosen.steps * chosen.batch_size,
                distribution=chosen.distribution,
            )
            data = EncodedData(folder)
            epochs["narrowcast", num_ids] = own_epoch(data, chosen.width, config)
            if num_ids <= chosen.control_ids:
                epochs["dense Adam", num_ids] = dense_epoch(data, chosen.width, config)
        with deterministic(config.deterministic):
            found = measure(epochs, chosen.steps, chosen)
    report(found, chosen)


def report(found: dict[tuple[str, int], list[float]], chosen: argparse.Namespace) -> None:
    first, last = min(chosen.ids), max(chosen.ids)
    table = Table("trainer", "ids", "ms a step, median", "least", "most", "of the smallest", title=chosen.distribution)
    rows: list[dict[str, Any]] = []
    for (name, num_ids), values in sorted(found.items(), key=lambda item: (item[0][0] != "narrowcast", item[0][1])):
        ratio = median(values) / median(found[name, first])
        rows.append({"trainer": name, "ids": num_ids, "ms": median(values), "ratio": ratio, "turns": values})
        figures = (f"{value:.1f}" for value in (median(values), min(values), max(values)))
        table.add_row(name, f"{num_ids:,}", *figures, f"{ratio:.2f}x")
    ratio = median(found["narrowcast", last]) / median(found["narrowcast", first])
    met = ratio <= TARGET
    Console().print(table)
    print(f"{last:,} ids over {first:,}: {ratio:.2f}x (target: at most {TARGET}x): {'met' if met else 'not met'}")
    target = {"ratio": ratio, "at_most": TARGET, "met": met}
    write_json(chosen.out, {"machine": machine(), "settings": settings(chosen), "rows": rows, "target": target})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
