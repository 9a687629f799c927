"""One step's work on a Ray cluster, and its files on object storage."""

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl

from narrowcast.components.train.job_files import JOB_FILE
from narrowcast.components.train.ray_api import Object, own_namespace
from narrowcast.components.train.ray_manifest import TRY, identity, job_name
from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.errors import NarrowcastError
from narrowcast.objects import fetch, join, put, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One step's work on a cluster: its job's name, the folder of its files, and what it was given."""

    name: str
    namespace: str
    folder: str
    identity: str
    function: str
    parameters: dict[str, Any]
    inputs: dict[str, dsl.Artifact]
    outputs: dict[str, dsl.Artifact]
    settings: RaySettings
    num_workers: int
    this_try: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def job_file(self) -> str:
        return join(self.folder, JOB_FILE)

    def is_mine(self, job: Object) -> bool:
        """Whether a RayJob is of this try of the step."""
        return bool(job["metadata"].get("annotations", {}).get(TRY) == self.this_try)

    def address(self, kind: str, name: str) -> str:
        """Of an artifact; `kind` is inputs or outputs."""
        return join(self.folder, kind, name)


def task_of(function: str, given: dict[str, Any], outputs: Sequence[str], settings: RaySettings) -> Task:
    """Raises NarrowcastError for a step without workers."""
    if given["num_workers"] < 1:
        raise NarrowcastError(
            f"num_workers is {given['num_workers']}: on a Ray cluster set it to at least 1, or leave the parameter "
            "'ray' empty"
        )
    inputs = {k: v for k, v in given.items() if isinstance(v, dsl.Artifact) and k not in outputs}
    parameters = {k: v for k, v in given.items() if k != "ray" and not isinstance(v, dsl.Artifact)}
    run = os.environ.get("NARROWCAST_JOB_NAME") or os.environ.get("KFP_POD_NAME") or f"run-{time.time_ns()}"
    work = {"function": function, "parameters": parameters, "inputs": {k: v.uri for k, v in inputs.items()}}
    key = identity(run, work)
    name = job_name(run, function.rpartition(":")[2], key)
    return Task(
        name=name,
        namespace=settings.namespace or own_namespace(),
        folder=join(settings.home, "jobs", name),
        identity=key,
        function=function,
        parameters=parameters,
        inputs=inputs,
        outputs={k: given[k] for k in outputs},
        settings=settings,
        num_workers=given["num_workers"],
    )


def hand_over(task: Task) -> None:
    """Put the inputs, and the job file that names them, to the job's folder."""
    for name, artifact in task.inputs.items():
        put(artifact.path, task.address("inputs", name))
    write_json(
        task.job_file,
        {
            "function": task.function,
            "parameters": {**task.parameters, "ray": {}},
            "inputs": {name: task.address("inputs", name) for name in task.inputs},
            "outputs": {name: task.address("outputs", name) for name in task.outputs},
        },
    )


def take_back(task: Task) -> None:
    """Fetch the outputs to where the step's caller wants them."""
    for name, artifact in task.outputs.items():
        fetch(task.address("outputs", name), artifact.path)
