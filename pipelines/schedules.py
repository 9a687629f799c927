"""Runs that come again: Kubeflow Pipelines' recurring runs, by name."""

import contextlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.pipelines.cluster_request import Request, place
from narrowcast.pipelines.cron import Cron, parse
from narrowcast.pipelines.kfp_client import KFP, KFPError, equals

UNITS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """Either `cron` or `every`, between `start` and `end` where they are given."""

    cron: Cron | None = None
    every: timedelta | None = None
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every is None):
            raise NarrowcastError("a schedule is either --cron '0 3 * * *' or --every 6h: give one of them")
        if self.end is not None and self.end <= max(datetime.now(UTC), self.start or self.end - timedelta(1)):
            raise NarrowcastError(f"the schedule ends at {self.end:%Y-%m-%d %H:%M}, before it begins: mend --end")

    def upcoming(self, count: int, now: datetime) -> list[datetime]:
        """The next `count` times for a schedule made `now`; an interval counts from its start, else from `now`."""
        start = max(now, self.start or now)
        if self.cron is not None:
            times = self.cron.upcoming(count, start)
        else:
            every = self.every or timedelta()
            first = start if start > now else now + every
            times = [first + i * every for i in range(count)]
        return [time for time in times if self.end is None or time <= self.end]

    def trigger(self) -> Any:
        """What the server is told."""
        from kfp_server_api import V2beta1CronSchedule, V2beta1PeriodicSchedule, V2beta1Trigger

        bounds = {"start_time": self.start, "end_time": self.end}
        if self.cron is not None:
            return V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=self.cron.text, **bounds))
        seconds = str(int((self.every or timedelta()).total_seconds()))  # an int64 is text in JSON
        return V2beta1Trigger(periodic_schedule=V2beta1PeriodicSchedule(interval_second=seconds, **bounds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A recurring run that the server holds. `when` is its cron with six fields, or its interval in words.

    `upcoming`: its next times; none while it is paused, and none of an interval's, which counts from its last run.
    """

    schedule_id: str
    name: str
    when: str
    enabled: bool
    version_id: str
    upcoming: tuple[datetime, ...]
    url: str


def interval(text: str) -> timedelta:
    """`30m`, `6h` or `1d`. Raises NarrowcastError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if not match:
        raise NarrowcastError(f"--every {text}: give minutes, hours or days, such as 30m, 6h or 1d")
    return timedelta(seconds=int(match[1]) * UNITS[match[2]])


def moment(option: str, text: str | None) -> datetime | None:
    """A time of the command line, in UTC where it says nothing else. Raises NarrowcastError for what is none."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise NarrowcastError(f"{option} {text}: write it as 2026-05-01 or 2026-05-01T03:00:00+02:00") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def create(
    kfp: KFP,
    request: Request,
    when: When,
    *,
    name: str,
    catch_up: bool = False,
    experiment: str | None = None,
    create_experiment: bool = False,
) -> Schedule:
    """Have the request's version run again and again, one run at a time.

    Raises NarrowcastError where a schedule has that name already.
    """
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1RecurringRun, V2beta1RuntimeConfig

    if _named(kfp, name):
        raise NarrowcastError(
            f"there is a schedule '{name}' already: `narrowcast schedule delete {name}` it first, or give another name"
        )
    version, experiment_id = place(kfp, request, experiment=experiment, create_experiment=create_experiment)
    wanted = V2beta1RecurringRun(
        display_name=name,
        description=f"narrowcast schedule, version {version.name}",
        experiment_id=experiment_id,
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=V2beta1RuntimeConfig(parameters=request.arguments),
        service_account=request.settings.service_account,
        trigger=when.trigger(),
        mode="ENABLE",
        max_concurrency="1",
        no_catchup=not catch_up,
    )
    api = kfp.client.recurring_runs
    made = kfp.call(f"creating schedule '{name}'", api.recurring_run_service_create_recurring_run, wanted)
    return replace(_schedule(kfp, made), upcoming=tuple(when.upcoming(3, datetime.now(UTC))))


def schedules(kfp: KFP) -> list[Schedule]:
    """All that the server holds, in every experiment."""
    return [_schedule(kfp, found) for found in _list(kfp)]


def pause(kfp: KFP, name: str) -> Schedule:
    """No new runs until it is resumed; one that is running goes on."""
    return _change(kfp, name, "pausing", "recurring_run_service_disable_recurring_run")


def resume(kfp: KFP, name: str) -> Schedule:
    """Go on with a paused schedule."""
    return _change(kfp, name, "resuming", "recurring_run_service_enable_recurring_run")


def delete(kfp: KFP, name: str) -> Schedule:
    """Delete a schedule and leave its runs alone; returns what it was."""
    found = _find(kfp, name)
    api = kfp.client.recurring_runs
    kfp.call(
        f"deleting schedule '{name}'",
        api.recurring_run_service_delete_recurring_run,
        found.recurring_run_id,
        propagation_policy="ORPHAN",  # else a run that is on its way is deleted with the schedule that owns it
    )
    return _schedule(kfp, found)


def _change(kfp: KFP, name: str, doing: str, method: str) -> Schedule:
    api, schedule_id = kfp.client.recurring_runs, _find(kfp, name).recurring_run_id
    kfp.call(f"{doing} schedule '{name}'", getattr(api, method), schedule_id)
    return _schedule(
        kfp, kfp.call(f"{doing} schedule '{name}'", api.recurring_run_service_get_recurring_run, schedule_id)
    )


def _list(kfp: KFP, **options: Any) -> list[Any]:
    method = kfp.client.recurring_runs.recurring_run_service_list_recurring_runs
    return list(kfp.pages("listing schedules", method, "recurring_runs", **kfp.within, **options))


def _named(kfp: KFP, name: str) -> list[Any]:
    return _list(kfp, filter=equals("display_name", name))


def _find(kfp: KFP, name: str) -> Any:
    """The schedule of that name or id."""
    named = _named(kfp, name)
    if len(named) > 1:
        ids = ", ".join(found.recurring_run_id for found in named)
        raise NarrowcastError(f"{len(named)} schedules are called '{name}': give an id in its place ({ids})")
    if named:
        return named[0]
    try:
        api = kfp.client.recurring_runs
        return kfp.call(f"looking for schedule '{name}'", api.recurring_run_service_get_recurring_run, name)
    except KFPError as error:
        if error.status != 404:
            raise
    known = [found.display_name for found in _list(kfp)]
    raise NarrowcastError(f"no schedule '{name}' at {kfp.host}: {nearest(name, known) if known else 'there is none'}")


def _schedule(kfp: KFP, found: Any) -> Schedule:
    cron = found.trigger and found.trigger.cron_schedule
    periodic = found.trigger and found.trigger.periodic_schedule
    enabled = found.status != "DISABLED"
    text, times = "", []
    if cron and cron.cron:
        text = cron.cron
        with contextlib.suppress(NarrowcastError):  # another program may have written what only the server reads
            read = parse(text if len(text.split()) != 5 else f"{text} *")  # the server's five begin with seconds
            times = When(cron=read, start=cron.start_time, end=cron.end_time).upcoming(3, datetime.now(UTC))
    elif periodic:
        text = f"every {timedelta(seconds=int(periodic.interval_second))}"
    reference = found.pipeline_version_reference
    return Schedule(
        schedule_id=found.recurring_run_id,
        name=found.display_name,
        when=text,
        enabled=enabled,
        version_id=(reference.pipeline_version_id if reference else None) or "",
        upcoming=tuple(times) if enabled else (),
        url=kfp.link("recurringrun", found.recurring_run_id),
    )
