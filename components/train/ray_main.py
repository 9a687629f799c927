"""A step's program on the head of its Ray cluster: `python -m narrowcast.components.train.ray_main JOB_FILE`.

The job file on object storage names the step's function, its parameters, and where its inputs and outputs lie.
"""

import importlib
import os
import sys
from typing import Any

from kfp import dsl

from narrowcast.components.train.job_files import JOB, local_copy, local_path
from narrowcast.objects import put, read_json
from narrowcast.step import step


def main(address: str) -> None:
    """Run the step on local copies of its inputs and put its outputs to their addresses.

    Raises SystemExit as the step does, and NarrowcastError where object storage refuses.
    """
    job = read_json(address)
    os.environ[JOB] = address.rpartition("/")[0]
    os.environ.setdefault("RAY_ADDRESS", "auto")
    module, _, name = job["function"].partition(":")
    component = getattr(importlib.import_module(module), name)
    outputs = {key: local_path(place) for key, place in job["outputs"].items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {key: local_copy(place) for key, place in job["inputs"].items()}
    artifacts = {key: dsl.Artifact(name=key, uri=str(path)) for key, path in {**inputs, **outputs}.items()}
    parameters: dict[str, Any] = job["parameters"]
    component.python_func(**parameters, **artifacts)
    for key, path in outputs.items():
        put(path, job["outputs"][key])


if __name__ == "__main__":
    with step("ray"):
        main(sys.argv[1])
