"""Many small trainings side by side, one thread each, resumed where they were interrupted."""

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.fit import TrainConfig, deterministic, fit
from narrowcast.components.train.metrics import all_metrics
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict
from narrowcast.records import write_text

RARE_BELOW = 10
"""An id is rare where training saw it fewer times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training: `data` as prepared, tables of `width`, MLET's `inner_width` or 0 for plain tables.

    `rare_field`: the categorical field by whose rare ids the test rows are also measured, "" for none.
    """

    data: str
    encoded: Path
    config: TrainConfig
    width: int
    inner_width: int = 0
    rare_field: str = ""

    @property
    def key(self) -> str:
        """Names the training wherever the data lie."""
        settings = asdict(replace(self, encoded=Path(self.encoded.parent.name)))
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    @property
    def kind(self) -> "Job":
        """The same training with seed 0: what takes about as long."""
        return replace(self, config=replace(self.config, seed=0))


Result = dict[str, Any]
"""`test`, `validation` (each as `all_metrics`), `rare` (the same of the test rows with a rare id, and `rows`; None
where they have not both labels), `best_epoch`, `epochs`, `stored_bytes`, `seconds` (of the processor: as on an idle
core)."""


def train(job: Job) -> Result:
    """Train one job in this process; the epoch is the one best on validation."""
    started = time.process_time()
    data = EncodedData(job.encoded)
    plan = full_plan(data.layout.table_rows, job.width, inner_width=job.inner_width or None)
    state = fit(data, plan, job.config, tell=lambda line: None)
    result: Result = {
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "stored_bytes": plan.stored_bytes(),
        "rare": None,
    }
    with deterministic():
        for name in ("validation", "test"):
            split = data.split(name)
            probability_B = predict(state.model, split)
            result[name] = all_metrics(split.label_B, probability_B, split.group_B)
    if job.rare_field:
        rare_B = rare_rows(data, job.rare_field, "test")
        label_B = split.label_B[rare_B]
        if 0 < label_B.sum() < len(label_B):
            figures = all_metrics(label_B, probability_B[rare_B], split.group_B[rare_B])
            result["rare"] = {**figures, "rows": len(label_B)}
    return {**result, "seconds": time.process_time() - started}


def rare_rows(data: EncodedData, field: str, split: str) -> np.ndarray:
    """Which rows of a split have an id of `field` that training saw fewer than `RARE_BELOW` times; bool, B."""
    count_R = data.table_counts()[data.layout.table_of[field]]
    rare_R = count_R < RARE_BELOW
    rare_R[0] = True  # unseen, or under the id threshold
    return rare_R[data.split(split).inputs.ids_BF[:, data.layout.categorical.index(field)]]


def run_all(jobs: Sequence[Job], journal: Path, processes: int, console: Console) -> list[Result]:
    """The results of `jobs` in their order, each appended to `journal` as it comes and taken from there when it is
    found there.

    Trainings start seed by seed, so that the time left is known once every kind has been seen.
    """
    done = read_journal(journal)
    missing = sorted((job for job in jobs if job.key not in done), key=lambda job: job.config.seed)
    if len(missing) < len(jobs):
        found = len(jobs) - len(missing)
        console.print(f"{found} of {len(jobs)} trainings are in {journal}; delete it to measure them again")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress, _pool(processes) as pool, journal.open("a") as stream:
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(missing))
        futures = {pool.submit(train, job): job for job in missing}
        for future in as_completed(futures):
            done[futures[future].key] = future.result()
            entry = {"key": futures[future].key, "job": asdict(futures[future]), "result": future.result()}
            stream.write(json.dumps(entry, default=str) + "\n")
            stream.flush()
            left = seconds_left(jobs, done) / processes
            progress.update(task, advance=1, description=f"about {left / 60:.1f} min left")
    return [done[job.key] for job in jobs]


def seconds_left(jobs: Sequence[Job], done: dict[str, Result]) -> float:
    """Seconds of one process for the jobs not done: the mean of those of the same kind, else of all that are done."""
    by_kind: dict[str, list[float]] = {}
    for job in jobs:
        if job.key in done:
            by_kind.setdefault(job.kind.key, []).append(done[job.key]["seconds"])
    everything = [seconds for kind in by_kind.values() for seconds in kind]
    return sum(mean(by_kind.get(job.kind.key, everything)) for job in jobs if job.key not in done) if everything else 0


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds (0 for one seed), and standard error of the mean."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean(values), "sd": spread, "se": spread / len(values) ** 0.5}


def read_journal(journal: Path) -> dict[str, Result]:
    """The results so far; a last line that an interruption cut short is dropped."""
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        return {}
    text = journal.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(journal, whole)
    entries = [json.loads(line) for line in whole.splitlines()]
    return {entry["key"]: entry["result"] for entry in entries}


@contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    """Processes that start afresh; trainings that wait are given up when the caller is interrupted."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """In a new process: one thread, and an end with the process that asked for it, even a killed one."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
