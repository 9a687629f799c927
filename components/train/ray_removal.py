"""How a job is taken away again, however its step ends."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from narrowcast.components.train.ray_api import RayJobs
from narrowcast.components.train.ray_task import Task
from narrowcast.errors import NarrowcastError
from narrowcast.objects import delete

REMOVAL_SECONDS = 120
"""How long a job's removal may take; of a step that is told to stop, CANCELLED_SECONDS."""
CANCELLED_SECONDS = 20


@contextlib.contextmanager
def cleaned_up(jobs: RayJobs, task: Task) -> Iterator[threading.Event]:
    """Whatever ends the block, job and files are taken away after it. SIGTERM, by which Kubernetes stops a pod, ends it
    with a NarrowcastError.

    The block sets the event that it is given once the job is made. A step that is told to stop then deletes it before
    all else: KFP's launcher, whose child the step is, ends at once, and what runs below it a second later.
    """
    told, made = threading.Event(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told.set()
        raise NarrowcastError(f"the step was told to stop: RayJob {task.name} is removed")

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield made
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if told.is_set() and made.is_set():
            with contextlib.suppress(NarrowcastError):  # it is tried again, and said
                jobs.delete(task.name)
        _clean_up(task, CANCELLED_SECONDS if told.is_set() else REMOVAL_SECONDS)
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _clean_up(task: Task, seconds: float) -> None:
    """Take away the job of this try and its files. What cannot be is said, and does not change how the step ends."""
    try:
        jobs = RayJobs(task.namespace, patience_seconds=seconds)
        job = jobs.get(task.name)
        if job is not None and not task.is_mine(job):
            return
        remove(jobs, task, seconds)
    except NarrowcastError as error:
        print(f"RayJob {task.name} was not seen to go: {error}", flush=True)
    try:
        delete(task.folder)
    except NarrowcastError as error:
        print(f"the job's files are left: {error}", flush=True)


def remove(jobs: RayJobs, task: Task, seconds: float) -> None:
    """Delete the job and wait until it and its pods are gone. Raises NarrowcastError where that takes longer."""
    jobs.delete(task.name)
    given_up = time.monotonic() + seconds
    while jobs.get(task.name) or jobs.pods(task.name):
        if time.monotonic() > given_up:
            raise NarrowcastError(
                f"RayJob {task.name} or its pods are still there after {seconds} s: see whether KubeRay's operator "
                f"runs, and `kubectl delete rayjob {task.name} --namespace {task.namespace}`"
            )
        time.sleep(0.5)
