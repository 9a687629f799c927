"""Ranking M candidates of one user with L history items: one history pass for all, beside a history pass a candidate.

    python benchmarks/amortised.py --backbone deepfm --width 16 --model-width 32 --layers 2
    python benchmarks/amortised.py --backbone dcnv2 --width 32 --model-width 64 --layers 3

One packed model (int8 tables, parameters as drawn) scores the same request in every way, the ways by turns in one
process, medians of wall clock. One by one is the model on rows that each have their own copy of the history: all M in
one call, in calls of --calls rows, and in M calls of one row; "one by one" is the quickest of these, and the ratios are
to it. Amortised is the ranker: cold (nothing kept) and cached (the history's state kept from an earlier request).

Operations are two a multiply-add of the matrix products, as torch counts them from the shapes. The floor is the time
that they need at the rate of a large float32 product, or that the memory needs for the bytes which any way must read
(the scorer's parameters; the request's ids and numbers; the rows or the kept state of the history; a row a candidate
and field), whichever is longer; both rates are measured here first.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from libraries import machine, settings
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from narrowcast.components.compact.packed import PackedNetwork
from narrowcast.components.compact.packed_table import table_tensors
from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.serve.amortised import MICRO_BATCH, Ranker
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.heads import backbones
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

TARGETS = ((100, 500), (256, 512))
"""(L, M) at which amortised must be at least `AT_LEAST` times as quick as one by one."""
AT_LEAST = 10.0
TABLES = {"user_id": 50_000, "item_id": 100_000} | {f"field_{i}": 1_000 for i in range(8)}
LAYOUT = Layout(
    categorical=tuple(TABLES),
    numeric=("number_1", "number_2", "number_3"),
    sequences=("history",),
    table_of={**{name: name for name in TABLES}, "history": "item_id"},
    table_rows=TABLES,
)
Figures = dict[str, Any]
CLOSE = 1e-5
"""Largest difference in probability between the ways of scoring."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What a ranker reads of a packed model."""

    network: PackedNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What the machine does at most, with the threads asked for."""

    operations: float  # a second
    bytes: float  # a second

    def floor_ms(self, operations: int, num_bytes: int) -> float:
        return 1000 * max(operations / self.operations, num_bytes / self.bytes)


def packed_model(chosen: argparse.Namespace) -> Packed:
    columns = tuple(range(chosen.width))
    plan = Plan(
        width=chosen.width,
        tables={
            name: TablePlan(rows=rows, blocks=(Block(start=0, stop=rows, columns=columns, bits=8),))
            for name, rows in TABLES.items()
        },
    )
    transformer = {"num_layers": chosen.layers, "num_heads": chosen.heads, "model_width": chosen.model_width}
    config = ModelConfig(
        backbone=chosen.backbone,
        hidden=tuple(chosen.hidden),
        history=chosen.history,
        history_settings=transformer if chosen.history in ("append", "concat") else {},
        init_std=0.1,
    )
    model = CTRModel(LAYOUT, plan, config, seed=0)
    tensors = {f"{name}.{k}": v for name, t in model.embedding.tables.items() for k, v in table_tensors(t).items()}
    return Packed(network=PackedNetwork(LAYOUT, plan, model.scorer, tensors).eval())


def request(length: int, num_candidates: int, seed: int = 0) -> Batch:
    """One user's candidates, with a full history of `length` items."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, rows, num_candidates) for rows in TABLES.values()]
    ids[0][:] = ids[0][0]
    return Batch(
        ids_BF=np.stack(ids, axis=1).astype(np.int32),
        dense_BN=rng.normal(size=(num_candidates, len(LAYOUT.numeric))).astype(np.float32),
        sequences={"history": rng.integers(0, TABLES["item_id"], (1, length)).astype(np.int32)},
    )


def repeated(batch: Batch) -> Batch:
    """The same rows, each with its own copy of the history."""
    sequences = {name: np.repeat(ids_1L, len(batch), axis=0) for name, ids_1L in batch.sequences.items()}
    return Batch(ids_BF=batch.ids_BF, dense_BN=batch.dense_BN, sequences=sequences)


def one_by_one(packed: Packed, calls: Sequence[Batch]) -> np.ndarray:
    with torch.inference_mode():
        scores = [torch.sigmoid(packed.network(*to_tensors(call))) for call in calls]
        return torch.cat(scores).numpy()


def in_calls(batch: Batch, rows: int) -> list[Batch]:
    return [batch.take(slice(start, start + rows)) for start in range(0, len(batch), rows)]


def kept(ranker: Ranker, batch: Batch) -> Ranker:
    """The ranker once it has seen the batch's history."""
    ranker.score([batch])
    return ranker


def by_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, median over rounds in which each has one turn; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * median(values) for name, values in seconds.items()}


def operations(way: Callable[[], Any]) -> int:
    """Of the matrix products, attention's among them, two a multiply-add."""

    def attention(query, key, value, *_, out_shape=None, **__):
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        way()
    return counter.get_total_flops()


def bytes_to_read(packed: Packed, batch: Batch, width: int, state_bytes: int | None = None) -> int:
    """What any way of scoring must read, each byte once; `state_bytes` of a kept history in place of its rows."""
    row_bytes = Block(start=0, stop=1, columns=tuple(range(width)), bits=8).row_bytes()
    parameters = sum(parameter.nbytes for parameter in packed.network.scorer.parameters())
    history = batch.sequences["history"]
    if state_bytes is None:
        state_bytes = history.nbytes + history.size * row_bytes
    return parameters + batch.ids_BF.nbytes + batch.dense_BN.nbytes + batch.ids_BF.size * row_bytes + state_bytes


def measured_rates(size: int = 2048, rounds: int = 5) -> Rates:
    """Of a float32 matrix product, and of reading an array far larger than the caches."""
    left, right, array = torch.randn(size, size), torch.randn(size, size), torch.ones(1 << 26)
    ms = by_turns({"product": lambda: left @ right, "sum": array.sum}, rounds)
    return Rates(operations=2000 * size**3 / ms["product"], bytes=1000 * array.nbytes / ms["sum"])


def measure(packed: Packed, length: int, num_candidates: int, rates: Rates, chosen: argparse.Namespace) -> Figures:
    """One request scored in every way."""
    batch = request(length, num_candidates)
    copies = repeated(batch)
    calls = {
        rows: in_calls(copies, rows) for rows in sorted({1, *chosen.calls, num_candidates}) if rows <= num_candidates
    }
    rankers = {"cold": Ranker(packed, cache_bytes=0), "cached": kept(Ranker(packed), batch)}
    amortised = {name: lambda ranker=ranker: ranker.score([batch])[0] for name, ranker in rankers.items()}
    alone = {f"{rows} a call": lambda part=part: one_by_one(packed, part) for rows, part in calls.items()}
    expected_M = one_by_one(packed, [copies])
    difference = max(float(np.abs(way() - expected_M).max()) for way in amortised.values())
    if difference > CLOSE:
        raise NarrowcastError(f"amortised scores differ by {difference:.2g} from those one by one, which is a defect")
    ms = by_turns(alone | amortised, chosen.rounds)
    quickest = min(alone, key=lambda name: ms[name])
    state_bytes = sum(state.num_bytes() for state in rankers["cached"].cache.states.values())
    to_read = {
        "cold": bytes_to_read(packed, batch, chosen.width),
        "cached": bytes_to_read(packed, batch, chosen.width, state_bytes),
    }
    counted = {name: operations(way) for name, way in (amortised | {quickest: alone[quickest]}).items()}
    return {
        "length": length,
        "candidates": num_candidates,
        "ms": ms,
        "quickest_one_by_one": quickest,
        "operations": counted,
        "bytes": to_read,
        "floor_ms": {name: rates.floor_ms(counted[name], to_read[name]) for name in amortised},
        "ratio": {name: ms[quickest] / ms[name] for name in amortised},
        "difference": difference,
    }


def measure_micro_batches(packed: Packed, chosen: argparse.Namespace) -> list[Figures]:
    """Milliseconds by micro-batch size: single requests, and eight at once, their histories kept."""
    found = []
    for (length, num_candidates), num_requests in product(TARGETS, (1, 8)):
        batches = [request(length, num_candidates, seed) for seed in range(num_requests)]
        ways = {}
        for size in chosen.micro_batches:
            ranker = Ranker(packed, micro_batch=size)
            ways[str(size)] = lambda ranker=ranker, batches=batches: ranker.score(batches)
        ms = by_turns(ways, chosen.rounds)
        found.append({"length": length, "candidates": num_candidates, "requests": num_requests, "ms": ms})
    return found


def measure_together(packed: Packed, chosen: argparse.Namespace) -> list[Figures]:
    """Milliseconds of several users' requests, their histories kept: in one call each, and in one call for all."""
    found = []
    for num_requests, num_candidates in ((32, 10), (8, 50), (8, 500)):
        batches = [request(100, num_candidates, seed) for seed in range(num_requests)]
        ranker = Ranker(packed)
        ways = {
            "one call each": lambda batches=batches, ranker=ranker: [ranker.score([batch]) for batch in batches],
            "one call": lambda batches=batches, ranker=ranker: ranker.score(batches),
        }
        found.append({"requests": num_requests, "candidates": num_candidates, "ms": by_turns(ways, chosen.rounds)})
    return found


def table_of(rows: Sequence[Figures], title: str) -> Table:
    columns = ("L", "M", "1 a call", "one by one", "rows a call", "cold", "ratio", "cached", "ratio")
    more = ("GFLOP one by one", "cold", "cached", "MB cold", "cached", "floor cold", "cached")
    table = Table(*columns, *more, title=title, box=SIMPLE_HEAD)
    for row in rows:
        ms, quickest, counted = row["ms"], row["quickest_one_by_one"], row["operations"]
        table.add_row(
            *(str(row[name]) for name in ("length", "candidates")),
            f"{ms['1 a call']:.0f}",
            f"{ms[quickest]:.1f}",
            quickest.split()[0],
            *(text for name in ("cold", "cached") for text in (f"{ms[name]:.2f}", f"{row['ratio'][name]:.1f}x")),
            *(f"{counted[name] / 1e9:.3f}" for name in (quickest, "cold", "cached")),
            *(f"{row['bytes'][name] / 1e6:.2f}" for name in ("cold", "cached")),
            *(f"{row['floor_ms'][name]:.2f}" for name in ("cold", "cached")),
        )
    return table


def timings(rows: Sequence[Figures], title: str) -> Table:
    """A column a way; the quickest of a row is marked."""
    keys = [name for name in rows[0] if name != "ms"]
    table = Table(*keys, *rows[0]["ms"], title=title, box=SIMPLE_HEAD)
    for row in rows:
        least = min(row["ms"].values())
        ms = [f"{value:.2f}{' *' if value == least else ''}" for value in row["ms"].values()]
        table.add_row(*(str(row[key]) for key in keys), *ms)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", choices=backbones(), default="deepfm")
    parser.add_argument("--history", choices=histories(), default="append")
    parser.add_argument("--width", type=int, default=16, help="embedding width")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 64], help="widths of the head's hidden layers")
    parser.add_argument("--layers", type=int, default=2, help="a transformer's blocks")
    parser.add_argument("--heads", type=int, default=2, help="a transformer's heads")
    parser.add_argument("--model-width", type=int, default=32, help="a transformer's width")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 100, 256], help="history items")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 500, 1000])
    parser.add_argument(
        "--calls", type=int, nargs="+", default=[32, 128], help="rows a call, one by one, beside 1 and M"
    )
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 4096])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("amortised.json"), help="JSON to write")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    packed, rates = packed_model(chosen), measured_rates()
    shapes = sorted({*product(chosen.lengths, chosen.candidates), *TARGETS})
    rows = [measure(packed, *shape, rates, chosen) for shape in track(shapes, "L, M", console=Console(stderr=True))]
    micro_batches, together = measure_micro_batches(packed, chosen), measure_together(packed, chosen)
    console = Console(width=180)
    model = f"{chosen.history}, {chosen.backbone}, {chosen.threads} threads"
    console.print(table_of(rows, f"{model}, micro-batch {MICRO_BATCH}: milliseconds a request"))
    console.print(timings(micro_batches, "milliseconds by micro-batch, histories kept"))
    console.print(timings(together, "milliseconds of several requests of L 100, histories kept"))
    console.print(f"at most {rates.operations / 1e9:.0f} GFLOP/s and {rates.bytes / 1e9:.1f} GB/s, measured")
    targets = [row for row in rows if (row["length"], row["candidates"]) in TARGETS]
    for row in targets:
        verdict = "met" if row["ratio"]["cold"] >= AT_LEAST else "not met"
        place = f"L {row['length']}, M {row['candidates']}"
        ratio = f"{row['ratio']['cold']:.1f}x cold, {row['ratio']['cached']:.1f}x cached"
        console.print(f"{place}: {ratio} (target: at least {AT_LEAST:.0f}x cold): {verdict}")
    write_json(
        chosen.out,
        {
            "machine": {**machine(), "operations_per_second": rates.operations, "bytes_per_second": rates.bytes},
            "settings": settings(chosen),
            "requests": rows,
            "micro_batches": micro_batches,
            "together": together,
        },
    )


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
