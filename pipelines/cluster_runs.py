"""Runs on the cluster: what state they and their steps are in, and how to end them."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.kfp_client import KFP, PAGE_SIZE, KFPError

POLL_SECONDS = 5.0
PATIENCE = 12
"""How many polls may fail one after another before a run is no longer waited for."""
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
CANCELLED = "CANCELED"
CANCELLING = "CANCELING"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step of a run. `state` is the server's word for it; WAITING before it has one."""

    name: str
    state: str = "WAITING"
    started: datetime | None = None
    finished: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run, its steps in the order of the DAG; none where only a list of runs was asked for."""

    run_id: str
    name: str
    state: str
    created: datetime | None
    finished: datetime | None
    schedule_id: str
    url: str
    steps: tuple[Step, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def failed_step(self) -> Step | None:
        return next((step for step in self.steps if step.state == "FAILED"), None)


def get_run(kfp: KFP, run_id: str) -> Run:
    """A run with its steps. Raises NarrowcastError for one that does not exist."""
    found = _get(kfp, run_id)
    return _run(kfp, found, _steps(found, _order(kfp, found)))


def recent_runs(kfp: KFP, experiment_id: str, count: int) -> list[Run]:
    """The experiment's newest `count` runs, newest first, without their steps."""
    pages = kfp.pages(
        "listing runs",
        kfp.client.runs.run_service_list_runs,
        "runs",
        experiment_id=experiment_id,
        sort_by="created_at desc",
        page_size=min(count, PAGE_SIZE),
    )
    return [_run(kfp, found) for found, _ in zip(pages, range(count), strict=False)]


def watch(kfp: KFP, run_id: str) -> Iterator[Run]:
    """The run after every poll until it has ended. A server that is away for a minute is waited for.

    A run that was being cancelled ends as CANCELED, though the server calls it FAILED.
    """
    found = _get(kfp, run_id)
    order, cancelling = _order(kfp, found), False
    while True:
        cancelling |= found.state == CANCELLING
        run = _run(kfp, found, _steps(found, order), cancelled=cancelling)
        yield run
        if run.ended:
            return
        found = _poll(kfp, run_id)


def cancel(kfp: KFP, run_id: str) -> Run:
    """Ask for a run's end; returns the run as it is then. Raises NarrowcastError where it has ended already."""
    run = _run(kfp, _get(kfp, run_id))
    if run.ended:
        raise NarrowcastError(f"run {run_id} has ended already ({run.state.lower()}): there is nothing to cancel")
    kfp.call(f"cancelling run {run_id}", kfp.client.runs.run_service_terminate_run, run_id)
    return _run(kfp, _get(kfp, run_id))


def _get(kfp: KFP, run_id: str) -> Any:
    try:
        return kfp.call(f"looking for run {run_id}", kfp.client.runs.run_service_get_run, run_id)
    except KFPError as error:
        if error.status != 404:
            raise
        raise KFPError(f"no run '{run_id}' at {kfp.host}: `narrowcast status` lists the last ones", 404) from None


def _poll(kfp: KFP, run_id: str) -> Any:
    """The run a while later, however often it takes to ask."""
    for misses in range(PATIENCE + 1):
        time.sleep(POLL_SECONDS)
        try:
            return _get(kfp, run_id)
        except KFPError as error:
            if misses == PATIENCE or error.status in {401, 403, 404}:
                mend = f"the run goes on: `narrowcast status {run_id}` asks for it again"
                raise KFPError(f"{error}; {mend}", error.status) from None
    raise AssertionError("the last miss raises")


def _run(kfp: KFP, found: Any, steps: tuple[Step, ...] = (), *, cancelled: bool = False) -> Run:
    cancelled |= any(status.state == CANCELLING for status in found.state_history or [])
    state = found.state or "PENDING"
    return Run(
        run_id=found.run_id,
        name=found.display_name,
        # KFP's server sets CANCELING, then Argo ends the workflow as failed, and FAILED is what stays
        state=CANCELLED if state == "FAILED" and cancelled else state,
        created=_time(found.created_at),
        finished=_time(found.finished_at),
        schedule_id=found.recurring_run_id or "",
        url=kfp.link("runs", found.run_id),
        steps=steps,
    )


def _order(kfp: KFP, found: Any) -> list[str]:
    """The steps' names in the order of the DAG, from the run's version; empty where the version was deleted."""
    reference = found.pipeline_version_reference
    spec = found.pipeline_spec
    if reference is not None:
        with contextlib.suppress(KFPError):
            spec = kfp.call(
                "looking for the run's version",
                kfp.client.pipelines.pipeline_service_get_pipeline_version,
                reference.pipeline_id,
                reference.pipeline_version_id,
            ).pipeline_spec
    if not spec:
        return []
    tasks = spec.get("pipeline_spec", spec)["root"]["dag"]["tasks"]
    before = {name: task.get("dependentTasks", ()) for name, task in tasks.items()}
    return list(TopologicalSorter(before).static_order())


def _steps(found: Any, order: list[str]) -> tuple[Step, ...]:
    """A step is a node of the workflow with the step's name, and before that one there is its driver.

    KFP's server tells no more of nodes once Argo has compressed them, as it does in a workflow of more than 1 MiB; in a
    run that succeeded the steps that it tells less of have succeeded, too.
    """
    nodes = {node.display_name: node for node in (found.run_details and found.run_details.task_details) or []}
    driven = {name.removesuffix("-driver") for name in nodes if name.endswith("-driver")}
    names = order or sorted(driven - {"root"})
    steps = tuple(_step(name, nodes.get(name), nodes.get(f"{name}-driver")) for name in names)
    if found.state == "SUCCEEDED":
        return tuple(step if step.state in ENDED else replace(step, state="SUCCEEDED") for step in steps)
    return steps


def _step(name: str, node: Any, driver: Any) -> Step:
    unsettled = {None, "RUNTIME_STATE_UNSPECIFIED", "SKIPPED"}
    if node is not None and node.state not in unsettled:
        first = driver or node
        return Step(name=name, state=node.state, started=_time(first.start_time), finished=_time(node.end_time))
    if driver is None or driver.state in unsettled:
        return Step(name=name, state="SKIPPED" if node is not None and node.state == "SKIPPED" else "WAITING")
    state = "FAILED" if driver.state == "FAILED" else "PENDING"
    return Step(
        name=name,
        state=state,
        started=_time(driver.start_time),
        finished=_time(driver.end_time) if state == "FAILED" else None,
    )


def _time(given: datetime | None) -> datetime | None:
    """A time that the server has set: unset ones are the first second of 1970, or of year 1."""
    return given.astimezone(UTC) if given is not None and given.year > 1970 else None
