"""A step carried out by a Ray cluster of its own: a RayJob made, followed and taken away again."""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from narrowcast.components.train import ray_ends
from narrowcast.components.train.ray_api import Object, RayJobs, own_namespace
from narrowcast.components.train.ray_log import ProgramLog
from narrowcast.components.train.ray_manifest import IDENTITY, TRY, manifest
from narrowcast.components.train.ray_removal import REMOVAL_SECONDS, cleaned_up, remove
from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.components.train.ray_task import Task, hand_over, take_back, task_of
from narrowcast.errors import NarrowcastError
from narrowcast.objects import delete
from narrowcast.settings import build

LOG_SECONDS = 15
"""How long the end of the log is waited for."""


def run_step(function: str, given: dict[str, Any], *, outputs: Sequence[str], ray: dict[str, Any]) -> None:
    """Carry out the component `function` ("module:name") with the arguments `given` on a Ray cluster.

    Its artifacts are as if it had run here; nothing of the job is left, however it ends. Raises NarrowcastError for
    settings, rights or a cluster that do not do, and with the step's own sentence where the step fails there.
    """
    task = task_of(function, given, outputs, build(RaySettings, ray, "parameter 'ray'"))
    jobs = RayJobs(task.namespace)
    with cleaned_up(jobs, task) as made:
        _make_room(jobs, task)
        hand_over(task)
        job = _create(jobs, task)
        made.set()
        _follow(jobs, task, job)
        take_back(task)


def _make_room(jobs: RayJobs, task: Task) -> None:
    """Remove what an earlier try of this very step has left. Raises NarrowcastError where the name is another's."""
    left = jobs.get(task.name)
    if left is not None:
        if left["metadata"].get("annotations", {}).get(IDENTITY) != task.identity:
            raise NarrowcastError(
                f"a RayJob {task.name} that this step has not made is in namespace '{task.namespace}': remove it by "
                f"`kubectl delete rayjob {task.name} --namespace {task.namespace}`, or wait for its end"
            )
        print(f"an earlier try of this step has left RayJob {task.name}: it is removed", flush=True)
        remove(jobs, task, REMOVAL_SECONDS)
    delete(task.folder)


def _create(jobs: RayJobs, task: Task) -> Object:
    """Raises NarrowcastError where somebody else has made one of this name in the meantime."""
    created = jobs.create(
        manifest(
            task.settings,
            name=task.name,
            namespace=task.namespace,
            address=task.job_file,
            num_workers=task.num_workers,
            annotations={IDENTITY: task.identity, TRY: task.this_try},
            owner=_owner(task.namespace),
        )
    )
    created = created or jobs.get(task.name)  # made all the same by a request that got no answer
    if created is None or not task.is_mine(created):
        raise NarrowcastError(
            f"RayJob {task.name} was made by another try of this step at the same time: wait for the end of that one"
        )
    print(f"RayJob {task.name} is made in namespace {task.namespace}", flush=True)
    return created


def _follow(jobs: RayJobs, task: Task, job: Object) -> None:
    """Return when the job has succeeded, else raise NarrowcastError. Prints what changes, and the program's log."""
    log, lost, told = ProgramLog(jobs), dict[str, str](), ""
    pending_since = time.monotonic()
    for current in jobs.follow(job):
        if current is None:
            raise NarrowcastError(ray_ends.deleted(task.name))
        standing = ray_ends.standing(current)
        pods = jobs.pods(task.name)
        log.look(pods)
        for pod, sentence in ray_ends.losses(pods, task.settings):
            if pod not in lost:
                print(sentence, flush=True)
            lost[pod] = sentence
        obstacle = ray_ends.obstacle(pods) if standing == ray_ends.PENDING else None
        line = f"RayJob {task.name}: {ray_ends.deployment(current)}{f', {obstacle}' if obstacle else ''}"
        if line != told:
            print(line, flush=True)
            told = line
        if standing in (ray_ends.SUCCEEDED, ray_ends.FAILED):
            log.finish(pods, LOG_SECONDS)
        if standing == ray_ends.SUCCEEDED:
            return
        if standing == ray_ends.FAILED:
            raise NarrowcastError(ray_ends.failure(current, task.settings, said=log.error, lost=lost.values()))
        if standing == ray_ends.RUNNING:
            pending_since = time.monotonic()
        elif time.monotonic() - pending_since > task.settings.pending_deadline_seconds:
            raise NarrowcastError(_pending_too_long(jobs, task, current, obstacle))


def _pending_too_long(jobs: RayJobs, task: Task, job: Object, obstacle: str | None) -> str:
    """What the job waits for and how to mend it: of its pods, else of what KubeRay was refused, else of KubeRay."""
    cluster = job.get("status", {}).get("rayClusterName")
    names = [name for name in (cluster, task.name) if name]
    waits_for = obstacle or next((warnings[-1] for name in names if (warnings := jobs.warnings(name))), None)
    start = f"RayJob {task.name} does not run after {task.settings.pending_deadline_seconds} s"
    if waits_for:
        advice = ray_ends.advice(waits_for, task.settings, task.num_workers)
        return f"{start} ({' '.join(waits_for.split())}): {advice}"
    if ray_ends.deployment(job) == "New":
        return f"{start}: KubeRay has not taken it up; see whether its operator runs and watches '{task.namespace}'"
    return f"{start}: its pods are still starting; raise ray.pending_deadline_seconds"


def _owner(namespace: str) -> Object | None:
    """This step's pod, with which the job goes."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    with contextlib.suppress(NarrowcastError):
        if name and uid and own_namespace() == namespace:
            return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
    return None
