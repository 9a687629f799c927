"""`narrowcast submit`, `schedule`, `status`, `logs` and `cancel`: runs on Kubeflow Pipelines."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.options import Json, Params, Set, changes

if TYPE_CHECKING:
    from narrowcast.pipelines.cluster_request import Request
    from narrowcast.pipelines.cluster_runs import Run
    from narrowcast.pipelines.cluster_settings import ClusterSettings
    from narrowcast.pipelines.kfp_client import KFP
    from narrowcast.pipelines.schedules import Schedule

Host = Annotated[str, typer.Option(help="Address of Kubeflow Pipelines, in place of cluster.host.")]
Experiment = Annotated[str | None, typer.Option(help="Experiment, in place of cluster.experiment.")]
CreateExperiment = Annotated[
    bool, typer.Option("--create-experiment", help="Make the experiment if it does not exist.")
]
AllowDirty = Annotated[bool, typer.Option("--allow-dirty", help="Submit though tracked files differ from the commit.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, as `submit` printed it.")]
Name = Annotated[str, typer.Argument(help="Name or id, from `narrowcast schedule list`.")]

CANCELLED = 3
"""Exit status for a run that was cancelled; 1 for one that failed."""

schedule = typer.Typer(help="Run the training pipeline on the cluster again and again.", no_args_is_help=True)
out = Console()
note = Console(stderr=True)


def submit(
    params: Params = Path("params.yaml"),
    set_: Set = None,
    host: Host = "",
    experiment: Experiment = None,
    create_experiment: CreateExperiment = False,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; default: commit and time.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, even those done before.")] = False,
    allow_dirty: AllowDirty = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the steps' states until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole DAG on Kubeflow Pipelines, as the section `cluster` of params.yaml places it.

    The package is uploaded as a version of pipeline narrowcast-training that is named after the Git commit. With
    --wait the exit status is 0 for a run that succeeded, 1 for one that failed, 3 for one that was cancelled.

    Example: `narrowcast submit --wait`

    Example: `narrowcast submit --set epochs=3 --set cluster.ray.retries=2 --run-name "three epochs"`
    """
    from narrowcast.pipelines import parameters
    from narrowcast.pipelines.cluster_request import prepared
    from narrowcast.pipelines.submit import submit as work

    settings = _settings(params, set_)
    values = parameters.load(params, changes(set_))
    with _checked(prepared(values, settings, Path.cwd(), cached=not no_cache, allow_dirty=allow_dirty)) as request:
        kfp = _connect(settings, host)
        made = work(kfp, request, name=run_name, experiment=experiment, create_experiment=create_experiment)
    uploaded = "uploaded" if made.new_version else "there already"
    note.print(f"run [bold]{made.run_id}[/], version {made.version} ({uploaded}): {made.url}", soft_wrap=True)
    if wait:
        _wait(kfp, made.run_id, as_json)
    elif as_json:
        _print_json(made)
    else:
        out.print(made.run_id)


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run id; without one, the last runs.")] = None,
    params: Params = Path("params.yaml"),
    host: Host = "",
    experiment: Experiment = None,
    last: Annotated[int | None, typer.Option(help="How many runs to list; default: 10.", min=1)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the steps' states until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's steps on the cluster, or the last runs of the experiment.

    With --wait the exit status is that of `narrowcast submit --wait`.

    Example: `narrowcast status`

    Example: `narrowcast status 5d08dd3d-58d9-4d02-9ff2-f2cee8dbfda8 --wait`
    """
    from narrowcast.pipelines.cluster_runs import get_run, recent_runs
    from narrowcast.pipelines.cluster_tables import run_table, runs_table
    from narrowcast.pipelines.experiments import experiment_id

    settings = _settings(params)
    if run is None and wait:
        raise NarrowcastError("--wait needs a run's id: `narrowcast status RUN --wait`")
    if run is not None and (experiment is not None or last is not None):
        raise NarrowcastError("--experiment and --last list runs: leave out RUN")
    kfp = _connect(settings, host)
    if run is None:
        found = recent_runs(kfp, experiment_id(kfp, experiment or settings.experiment), last or 10)
        _print_json(found) if as_json else out.print(runs_table(found))
    elif wait:
        _wait(kfp, run, as_json)
    else:
        one = get_run(kfp, run)
        if as_json:
            _print_json(one)
            return
        out.print(run_table(one))
        out.print(one.url, soft_wrap=True)


def logs(
    run: RunId,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="One step, such as train.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the step has ended.")] = False,
    namespace: Annotated[str | None, typer.Option(help="Where the pods are, in place of cluster.namespace.")] = None,
    params: Params = Path("params.yaml"),
    host: Host = "",
) -> None:
    """Print what the steps of a run have printed, or one step's log.

    Logs are read from the pods through kubeconfig: Kubeflow Pipelines' API gives them for a pod's name only. They are
    there as long as the pods are.

    Example: `narrowcast logs 5d08dd3d-58d9-4d02-9ff2-f2cee8dbfda8 train --follow`
    """
    from narrowcast.pipelines import step_logs
    from narrowcast.pipelines.cluster_runs import get_run

    if follow and step is None:
        raise NarrowcastError("--follow needs a step, such as `narrowcast logs RUN train --follow`")
    settings = _settings(params)
    kfp = _connect(settings, host)
    found, where = get_run(kfp, run), namespace or settings.namespace
    name = step.replace("_", "-") if step else None
    lines = step_logs.follow(kfp, found, where, name) if follow and name else step_logs.logs(found, where, name)
    pod = ""
    for line in lines:
        if line.pod != pod:
            note.print(f"[dim]step {line.step}, pod {line.pod}[/]", soft_wrap=True)
            pod = line.pod
        print(line.text if step else f"{line.step} | {line.text}", flush=follow)


def cancel(run: RunId, params: Params = Path("params.yaml"), host: Host = "", as_json: Json = False) -> None:
    """End a run on the cluster before it is done.

    Steps that run are told so (SIGTERM) and have about a second; a step that waits for a RayJob deletes it before all
    else. `kubectl get rayjobs -A -l app.kubernetes.io/part-of=narrowcast` shows whether one is left. What serves goes
    on serving.

    Example: `narrowcast cancel 5d08dd3d-58d9-4d02-9ff2-f2cee8dbfda8`
    """
    from narrowcast.pipelines.cluster_runs import cancel as work

    ending = work(_connect(_settings(params), host), run)
    if as_json:
        _print_json(ending)
    else:
        out.print(
            f"run {run} is {ending.state.lower()}: `narrowcast status {run} --wait` waits for its end", soft_wrap=True
        )


@schedule.command("create")
def schedule_create(
    name: Annotated[str, typer.Argument(help="Name of the schedule; there is one of a name.")],
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day, month, weekday; UTC.")] = None,
    every: Annotated[str | None, typer.Option(help="Interval, such as 30m, 6h or 1d.")] = None,
    start: Annotated[str | None, typer.Option(help="Not before, such as 2026-05-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Not after.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for every time that was missed.")] = False,
    params: Params = Path("params.yaml"),
    set_: Set = None,
    host: Host = "",
    experiment: Experiment = None,
    create_experiment: CreateExperiment = False,
    allow_dirty: AllowDirty = False,
    as_json: Json = False,
) -> None:
    """Run this commit's pipeline with these parameters whenever the schedule says, one run at a time.

    The usual five fields of cron, or six with seconds first, in UTC unless CRON_SCHEDULE_TIMEZONE is set on the server.
    Scheduled runs take no step from the cache. `--set data_version=latest:shop` trains on the newest snapshot
    of the folder `shop`.

    Example: `narrowcast schedule create nightly --cron "0 3 * * *" --set data_version=latest:shop`

    Example: `narrowcast schedule create often --every 6h --start 2026-05-01`
    """
    from narrowcast.pipelines import parameters, schedules
    from narrowcast.pipelines.cluster_request import prepared
    from narrowcast.pipelines.cluster_tables import times
    from narrowcast.pipelines.cron import parse

    when = schedules.When(
        cron=parse(cron) if cron is not None else None,
        every=schedules.interval(every) if every is not None else None,
        start=schedules.moment("--start", start),
        end=schedules.moment("--end", end),
    )
    settings = _settings(params, set_)
    values = parameters.load(params, changes(set_))
    with _checked(prepared(values, settings, Path.cwd(), cached=False, allow_dirty=allow_dirty)) as request:
        made = schedules.create(
            _connect(settings, host),
            request,
            when,
            name=name,
            catch_up=catch_up,
            experiment=experiment,
            create_experiment=create_experiment,
        )
    if as_json:
        _print_json(made)
        return
    six = f" (sent as '{when.cron.text}', seconds first)" if when.cron and when.cron.text != cron else ""
    out.print(f"schedule [bold]{name}[/] is on{six}: {made.url}", soft_wrap=True)
    out.print(f"next (UTC): {times(made.upcoming)}", soft_wrap=True)


@schedule.command("list")
def schedule_list(params: Params = Path("params.yaml"), host: Host = "", as_json: Json = False) -> None:
    """List the schedules: when they fire, whether they are paused.

    Example: `narrowcast schedule list`
    """
    from narrowcast.pipelines.cluster_tables import schedules_table
    from narrowcast.pipelines.schedules import schedules

    found = schedules(_connect(_settings(params), host))
    _print_json(found) if as_json else out.print(schedules_table(found))


@schedule.command("pause")
def schedule_pause(name: Name, params: Params = Path("params.yaml"), host: Host = "", as_json: Json = False) -> None:
    """Start no new runs until the schedule is resumed; one that is on its way goes on.

    Example: `narrowcast schedule pause nightly`
    """
    from narrowcast.pipelines.schedules import pause

    _said(pause(_connect(_settings(params), host), name), "paused", as_json)


@schedule.command("resume")
def schedule_resume(name: Name, params: Params = Path("params.yaml"), host: Host = "", as_json: Json = False) -> None:
    """Go on with a paused schedule.

    Example: `narrowcast schedule resume nightly`
    """
    from narrowcast.pipelines.schedules import resume

    _said(resume(_connect(_settings(params), host), name), "on", as_json)


@schedule.command("delete")
def schedule_delete(name: Name, params: Params = Path("params.yaml"), host: Host = "", as_json: Json = False) -> None:
    """Delete a schedule; its runs stay, and one that is on its way goes on.

    Example: `narrowcast schedule delete nightly`
    """
    from narrowcast.pipelines.schedules import delete

    _said(delete(_connect(_settings(params), host), name), "deleted", as_json)


def _settings(params: Path, set_: list[str] | None = None) -> "ClusterSettings":
    from narrowcast.pipelines import cluster_settings

    return cluster_settings.load(params, changes(set_))


def _connect(settings: "ClusterSettings", host: str) -> "KFP":
    from narrowcast.pipelines.kfp_client import connect

    return connect(host or settings.host, settings.namespace)


@contextmanager
def _checked(prepared: AbstractContextManager["Request"]) -> Iterator["Request"]:
    """The request, and a sign of life while it is made: torch checks the parameters, which takes seconds to load."""
    with ExitStack() as stack:
        with note.status("checking the parameters, compiling the pipeline"):
            request = stack.enter_context(prepared)
        yield request


def _wait(kfp: "KFP", run_id: str, as_json: bool) -> None:
    """Show the run until it has ended, then exit with its status."""
    from narrowcast.pipelines.cluster_runs import watch
    from narrowcast.pipelines.cluster_tables import run_table, showing

    try:
        with showing(note) as show:
            for run in watch(kfp, run_id):
                show(run)
    except KeyboardInterrupt:
        note.print(f"run {run_id} goes on: `narrowcast cancel {run_id}` ends it", soft_wrap=True)
        raise typer.Exit(130) from None
    _print_json(run) if as_json else out.print(run_table(run))
    if run.state == "CANCELED":
        note.print(f"run {run_id} was cancelled", soft_wrap=True)
        raise typer.Exit(CANCELLED)
    if run.state == "FAILED":
        raise NarrowcastError(_failure(run))


def _failure(run: "Run") -> str:
    step = run.failed_step()
    if step is None:
        return f"run {run.run_id} failed, no step of it did: look at {run.url}"
    return f"run {run.run_id} failed in step '{step.name}': `narrowcast logs {run.run_id} {step.name}` says why"


def _said(schedule: "Schedule", state: str, as_json: bool) -> None:
    _print_json(schedule) if as_json else out.print(f"schedule [bold]{schedule.name}[/] is {state}")


def _print_json(value: Any) -> None:
    """A dataclass or a list of them, times in ISO 8601."""
    plain = [asdict(item) for item in value] if isinstance(value, list) else asdict(value)
    print(json.dumps(plain, indent=1, default=datetime.isoformat))
