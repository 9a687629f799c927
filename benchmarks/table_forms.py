"""Forms of tables at about equal bytes: test AUC and logloss of fewer bits, shared rows, codebooks and fewer columns.

    python benchmarks/table_forms.py --seeds 5

The bytes are those of the tables with 8, 4 and 2 bits a value; every other form gets the largest plan within them. Bits
and codebooks are applied after training, to one float32 model a seed; bits also in training (aware). The others are
trained in their own form. Tables of few rows keep them whole in float32, where rows are shared or coded.
"""

import argparse
import math
import multiprocessing
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from options import describe, markdown, parser, prepare_all, settings, train_config
from rich.console import Console
from rich.progress import track
from runner import summary

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, deterministic, fit
from narrowcast.components.train.forms import COMBINES, QR, Codebook, Form, Hash
from narrowcast.components.train.metrics import all_metrics
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.tables import TableGroup, round_as_stored
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

BUDGET_BITS = (8, 4, 2)
LEAST_ROWS = 100
"""Tables of fewer rows neither share nor code them."""
HOT = 0.5
"""Share of a plan's rows that the hottest ids have for themselves where only the tail is hashed."""
SIZES = 1000
"""Steps in which a form's size is searched."""
FLOAT32 = "float32"
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training: a plan, and what is measured of it, by name: itself, or as stored by other plans of its shape."""

    encoded: Path
    config: TrainConfig
    plan: Plan
    stored: dict[str, Plan] = field(default_factory=dict)


def measure(job: Job) -> dict[str, Figures]:
    """Test figures of the model under every name."""
    data = EncodedData(job.encoded)
    model = cast(CTRModel, fit(data, job.plan, job.config, tell=lambda line: None).model)
    test, found = data.split("test"), {}
    for name, plan in job.stored.items():
        served = CTRModel(data.layout, plan, job.config.model, job.config.seed)
        served.load_state_dict(model.state_dict())
        for group in served.embedding.groups:
            round_as_stored(cast(TableGroup, group))
        with deterministic():
            figures = all_metrics(test.label_B, predict(served, test), test.group_B)
        found[name] = {**figures, "stored_bytes": plan.stored_bytes()}
    return found


def uniform(rows: dict[str, int], width: int, *, columns: int, bits: int = 32) -> Plan:
    """All rows, with the first `columns` columns."""
    return plan_of(rows, width, lambda n: (Block(start=0, stop=n, columns=tuple(range(columns)), bits=bits),))


def plan_of(rows: dict[str, int], width: int, blocks: Callable[[int], tuple[Block, ...]]) -> Plan:
    return Plan(width=width, tables={name: TablePlan(rows=n, blocks=blocks(n)) for name, n in rows.items()})


def with_form(n: int, width: int, form: Form, *, start: int = 0, bits: int = 32) -> tuple[Block, ...]:
    """Rows from `start` on in `form`, where that is possible and saves bytes."""
    columns = tuple(range(width))
    whole = Block(start=0, stop=n, columns=columns)
    if n < LEAST_ROWS or form.fault(n - start, columns, bits):
        return (whole,)
    hot = (Block(start=0, stop=start, columns=columns),) if start else ()
    blocks = (*hot, Block(start=start, stop=n, columns=columns, bits=bits, form=form))
    return blocks if sum(block.stored_bytes() for block in blocks) < whole.stored_bytes() else (whole,)


def hashed(rows: dict[str, int], width: int, share: float) -> Plan:
    return plan_of(rows, width, lambda n: with_form(n, width, Hash(buckets=max(1, int(share * n)))))


def tail_hashed(rows: dict[str, int], width: int, share: float) -> Plan:
    def blocks(n: int) -> tuple[Block, ...]:
        hot = max(1, int(HOT * share * n))
        return with_form(n, width, Hash(buckets=hot), start=hot)

    return plan_of(rows, width, blocks)


def quotient_remainder(rows: dict[str, int], width: int, share: float, combine: str) -> Plan:
    """As many remainders as the share allows, but no fewer than the root of the rows, which is the smallest plan."""

    def blocks(n: int) -> tuple[Block, ...]:
        return with_form(n, width, QR(remainders=max(math.isqrt(n), int(share * n)), combine=combine))

    return plan_of(rows, width, blocks)


def coded(rows: dict[str, int], width: int, groups: int, centroids: int) -> Plan:
    form = Codebook(groups=groups, centroids=centroids)
    return plan_of(rows, width, lambda n: with_form(n, width, form, bits=16))


def largest(plans: list[Plan], budget: int) -> Plan:
    """The largest plan within the budget; the smallest of all where none is."""
    fitting = [plan for plan in plans if plan.stored_bytes() <= budget]
    return max(fitting, key=Plan.stored_bytes) if fitting else min(plans, key=Plan.stored_bytes)


def fitted(make: Callable[[float], Plan], budget: int) -> Plan:
    """The plan of the largest share within the budget, or the smallest; bytes grow with the share, to a row or so."""
    shares = [size / SIZES for size in range(1, SIZES)]
    return make(shares[max(bisect_right(shares, budget, key=lambda share: make(share).stored_bytes()) - 1, 0)])


def shared_plans(rows: dict[str, int], width: int, budget: int) -> dict[str, Plan]:
    """What is trained in its own form, by name."""
    makers: dict[str, Callable[[float], Plan]] = {
        "hash": lambda share: hashed(rows, width, share),
        "hot rows private, tail hashed": lambda share: tail_hashed(rows, width, share),
    }
    for combine in COMBINES:
        makers[f"quotient-remainder, {combine}"] = lambda share, how=combine: quotient_remainder(
            rows, width, share, how
        )
    found = {name: fitted(make, budget) for name, make in makers.items()}
    narrow = [uniform(rows, width, columns=columns) for columns in range(1, width)]
    return {**found, "fewer columns": largest(narrow, budget)}


def codebook_plan(rows: dict[str, int], width: int, budget: int) -> Plan:
    """Of the codebooks within the budget, the one that spends most on codes, and then on centroids."""
    groups = [number for number in range(1, width + 1) if width % number == 0]
    plans = [coded(rows, width, number, centroids) for number in groups for centroids in (16, 32, 64, 128, 256)]
    return largest(plans, budget)


def jobs_of(options: argparse.Namespace, encoded: Path) -> list[Job]:
    """Seed by seed; a result's name is `<form> @ <bits that set the bytes>`."""
    rows, width = EncodedData(encoded).layout.table_rows, options.width
    whole = full_plan(rows, width)
    after = {FLOAT32: whole, "float16": uniform(rows, width, columns=width, bits=16)}
    trained: list[tuple[str, Plan, bool]] = []
    for bits in BUDGET_BITS:
        budgeted = uniform(rows, width, columns=width, bits=bits)
        after[f"{bits} bits @ {bits}"] = budgeted
        after[f"codebook @ {bits}"] = codebook_plan(rows, width, budgeted.stored_bytes())
        trained.append((f"{bits} bits, aware @ {bits}", budgeted, True))
        shared = shared_plans(rows, width, budgeted.stored_bytes())
        trained += [(f"{name} @ {bits}", plan, False) for name, plan in shared.items()]
    jobs = []
    for seed in range(options.seeds):
        config = train_config(options, ModelConfig(backbone=options.backbone, hidden=tuple(options.hidden)), seed)
        jobs.append(Job(encoded=encoded, config=config, plan=whole, stored=after))
        for name, plan, aware in trained:
            own = replace(config, quantisation_aware=aware)
            jobs.append(Job(encoded=encoded, config=own, plan=plan, stored={name: plan}))
    return jobs


def table(results: dict[str, list[Figures]]) -> str:
    """Mean (deviation) over the seeds; the loss is against float32 of the same seed."""
    whole = results[FLOAT32]
    order = {name: (-int(name.partition(" @ ")[2] or 99), i) for i, name in enumerate(results)}
    lines = []
    for name in sorted(results, key=order.__getitem__):
        form, _, bits = name.partition(" @ ")
        auc = summary([figures["auc"] for figures in results[name]])
        logloss = summary([figures["logloss"] for figures in results[name]])
        loss = summary([full["auc"] - own["auc"] for full, own in zip(whole, results[name], strict=True)])
        stored = results[name][0]["stored_bytes"]
        lines.append(
            [
                f"{bits} bits" if bits else "",
                form,
                f"{stored:,}",
                f"{whole[0]['stored_bytes'] / stored:.1f}x",
                f"{auc['mean']:.4f} ({auc['sd']:.4f})",
                f"{loss['mean']:+.4f} ({loss['sd']:.4f})",
                f"{logloss['mean']:.4f} ({logloss['sd']:.4f})",
            ]
        )
    return markdown(["bytes as of", "form", "bytes", "smaller", "AUC", "AUC lost", "logloss"], lines)


def main() -> None:
    made = parser(__doc__.split("\n")[0], data=["ml_100k"], epochs=6, patience=2, out="table_forms.json")
    made.add_argument("--backbone", default="deepfm")
    made.add_argument("--width", type=int, default=16)
    options = made.parse_args()
    console = Console(stderr=True)
    found: dict[str, dict[str, list[Figures]]] = {}
    spawn = multiprocessing.get_context("spawn")
    for name, prepared in prepare_all(options, console).items():
        jobs = jobs_of(options, prepared / "encoded")
        found[name] = {}
        with ProcessPoolExecutor(options.processes, spawn, torch.set_num_threads, (1,)) as pool:
            for measured in track(pool.map(measure, jobs), name, total=len(jobs), console=console):
                for form, figures in measured.items():
                    found[name].setdefault(form, []).append(figures)
        print(f"\n{name}, {options.backbone}, width {options.width}, {describe(options)}:\n")
        print(table(found[name]), flush=True)
    write_json(options.out, {"settings": settings(options), **found})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
