"""The local runner: the compiled pipeline through kfp.local, one process a step, cached by content."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from narrowcast import __version__
from narrowcast.records import digest
from narrowcast.step import MARK

EXECUTING = re.compile(r"Executing task .*?'([\w-]+)'")
CACHED = re.compile(r"Task ([\w-]+) cache hit")


@dataclass(kw_only=True, slots=True)
class StepState:
    """How one step of a run stands: `status` is running, done, cached or failed."""

    status: str
    seconds: float = 0.0
    error: str | None = None


def code_digest() -> str:
    """md5 of the package's sources: two runs share cached steps only when their code is the same."""
    root = Path(__file__).resolve().parents[1]
    folders = (root / name for name in ("components", "feature_repo", "narrowcast", "pipelines"))
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.rglob("*.py"))
    lines = "".join(f"{file.relative_to(root).as_posix()} {digest(file)}\n" for file in files)
    return hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()


class _Log(io.TextIOBase):
    """Stands in for standard output while kfp runs: keeps everything in a file and follows the steps' states."""

    def __init__(self, file: TextIO, progress: Progress, total: int) -> None:
        self.file = file
        self.progress = progress
        self.task = progress.add_task("starting", total=total)
        self.states: dict[str, StepState] = {}
        self.started = time.monotonic()
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._read(line)
        return len(text)

    def _read(self, line: str) -> None:
        if found := EXECUTING.search(line):
            name = found[1].replace("-", "_")
            self.states[name] = StepState(status="running")
            self.started = time.monotonic()
            self.progress.update(self.task, description=name)
        elif found := CACHED.search(line):
            self._end(found[1].replace("-", "_"), StepState(status="cached"))
        elif (at := line.find(MARK)) >= 0:
            told = json.loads(line[at + len(MARK) :])
            status = "failed" if told["error"] else "done"
            took = time.monotonic() - self.started
            self._end(told["step"], StepState(status=status, seconds=took, error=told["error"]))

    def _end(self, name: str, state: StepState) -> None:
        self.states[name] = state
        mark = {"done": "[green]done[/]", "cached": "[cyan]cached[/]", "failed": "[red]failed[/]"}[state.status]
        took = f"{state.seconds:6.1f} s" if state.status != "cached" else " " * 8
        self.progress.console.print(f"  {name:<15} {mark:<18} {took}", highlight=False)
        self.progress.advance(self.task)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalRun:
    """What a local run left: the state of every step that began, and the artifacts' folders when all ended well.

    `code` is the md5 of the sources that ran; `error` is the sentence of the step that failed.
    """

    code: str
    states: dict[str, StepState]
    artifacts: dict[str, Path]
    error: str | None


def run_locally(arguments: dict[str, Any], *, home: Path, log_path: Path, use_cache: bool = True) -> LocalRun:
    """Run the training pipeline on this machine. Steps print to `log_path`; the console shows one line a step.

    Artifacts go below `home/kfp`; a step whose code, parameters and inputs have run before is not run again.
    """
    code = code_digest()
    image = f"narrowcast-python:{__version__}-{code[:12]}"
    _quiet()
    from kfp import local

    from narrowcast.pipelines.cluster_settings import ClusterSettings
    from narrowcast.pipelines.graph import steps
    from narrowcast.pipelines.placement import placed

    pipeline = placed(ClusterSettings(image=image))  # part of kfp's cache key, so that changed code runs again
    workspace = home / "kfp-workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home / "kfp"),
        workspace_root=str(workspace),
        enable_caching=use_cache,
        cache_root=str(home / "kfp-cache"),
    )
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w") as file, _progress() as progress:
        log = _Log(file, progress, len(steps()))
        try:
            with contextlib.redirect_stdout(log), _logging_to(log), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = pipeline(**arguments).outputs
        except KeyboardInterrupt:  # the terminal has told the step, too
            for state in log.states.values():
                state.status = "failed" if state.status == "running" else state.status
            error = "stopped by hand; what is done stays done: run again to resume"
            return LocalRun(code=code, states=log.states, artifacts={}, error=error)
        except RuntimeError:
            return LocalRun(code=code, states=log.states, artifacts={}, error=_failure(log.states, log_path))
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    return LocalRun(
        code=code, states=log.states, artifacts={name: Path(a.path) for name, a in outputs.items()}, error=None
    )


def _failure(states: dict[str, StepState], log_path: Path) -> str:
    """The sentence of the failed step; a step that died without one is named with its log."""
    for name, state in states.items():
        if state.error:
            return f"step '{name}': {state.error}"
    running = [name for name, state in states.items() if state.status == "running"]
    if not running:
        return f"the pipeline failed outside its steps: see {log_path}"
    name = running[-1]
    states[name].status = "failed"
    return f"step '{name}' ended without a word (killed? out of memory?): see {log_path}, then run again to resume"


@contextlib.contextmanager
def _logging_to(log: _Log) -> Iterator[None]:
    """kfp tells of cached steps through the root logger only."""
    root = logging.getLogger()
    level, handler = root.level, logging.StreamHandler(log)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _quiet() -> None:
    os.environ.update(
        GX_ANALYTICS_ENABLED="False", RAY_USAGE_STATS_ENABLED="0", DVC_NO_ANALYTICS="1", PYTHONUNBUFFERED="1"
    )
