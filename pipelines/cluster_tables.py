"""Runs and schedules as a terminal shows them, and as JSON."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from narrowcast.pipelines.cluster_runs import Run
from narrowcast.pipelines.schedules import Schedule

COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow", "CANCELING": "yellow", "RUNNING": "cyan"}


def run_table(run: Run) -> Table:
    """A run's steps, their states and how long they have taken."""
    table = Table("step", "state", "duration", title=f"{escape(run.name)}: {_state(run.state)}")
    for step in run.steps:
        table.add_row(step.name, _state(step.state), _duration(step.started, step.finished, run.ended))
    return table


def runs_table(runs: Iterable[Run]) -> Table:
    table = Table("run", "name", "state", "created (UTC)", "duration")
    for run in runs:
        created = f"{run.created:%Y-%m-%d %H:%M}" if run.created else ""
        duration = _duration(run.created, run.finished, run.ended)
        table.add_row(run.run_id, escape(run.name), _state(run.state), created, duration)
    return table


def schedules_table(schedules: Iterable[Schedule]) -> Table:
    table = Table("name", "when", "state", "next (UTC)", "id")
    for schedule in schedules:
        state = "[green]on[/]" if schedule.enabled else "[yellow]paused[/]"
        table.add_row(escape(schedule.name), schedule.when, state, times(schedule.upcoming[:1]), schedule.schedule_id)
    return table


def times(given: Iterable[datetime]) -> str:
    return ", ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in given)


@contextlib.contextmanager
def showing(console: Console) -> Iterator[Callable[[Run], Any]]:
    """A function that shows a run: one table kept up to date, or a line for each change where no terminal is."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            yield lambda run: live.update(run_table(run))
    else:
        yield _changes_to(console)


def _changes_to(console: Console) -> Callable[[Run], None]:
    known: dict[str, str] = {}

    def show(run: Run) -> None:
        for name, state in [*((step.name, step.state) for step in run.steps), ("run", run.state)]:
            if known.get(name, "WAITING") != state:
                known[name] = state
                console.print(f"{datetime.now(UTC):%H:%M:%S} {name} {state.lower()}", highlight=False)

    return show


def _state(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state.lower()}[/]" if colour else state.lower()


def _duration(started: datetime | None, finished: datetime | None, ended: bool) -> str:
    if started is None or (finished is None and ended):
        return ""
    seconds = int(((finished or datetime.now(UTC)) - started).total_seconds())
    minutes, seconds = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
