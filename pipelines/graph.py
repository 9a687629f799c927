"""The DAG as data, read from the compiled pipeline, so that nothing else wires the steps a second time."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kfp import dsl

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.pipelines import training


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One task of the pipeline.

    `artifacts`: input name to the (step, output) that makes it. `parameters`: input name to the pipeline parameter it
    takes. `outputs`: output names.
    """

    name: str
    artifacts: dict[str, tuple[str, str]]
    parameters: dict[str, str]
    outputs: tuple[str, ...]

    def function(self) -> Callable[..., None]:
        """The component's Python function."""
        return getattr(training, self.name).python_func


@cache
def steps() -> dict[str, Step]:
    """All steps by name, in an order in which they can run."""
    spec = training.training.pipeline_spec
    found: dict[str, Step] = {}
    for task_name, task in spec.root.dag.tasks.items():
        name = task_name.replace("-", "_")
        component = spec.components[task.component_ref.name]
        artifacts: dict[str, tuple[str, str]] = {}
        for key, source in task.inputs.artifacts.items():
            producer = source.task_output_artifact
            artifacts[key] = (producer.producer_task.replace("-", "_"), producer.output_artifact_key)
        parameters = {key: source.component_input_parameter for key, source in task.inputs.parameters.items()}
        found[name] = Step(
            name=name,
            artifacts=dict(sorted(artifacts.items())),
            parameters=dict(sorted(parameters.items())),
            outputs=tuple(sorted(component.output_definitions.artifacts)),
        )
    source = inspect.getsource(training.training.pipeline_func)
    return {name: found[name] for name in sorted(found, key=lambda name: source.index(f" {name}("))}


def step(name: str) -> Step:
    if name not in steps():
        raise NarrowcastError(f"no step '{name}': {nearest(name, steps())}")
    return steps()[name]


def call(name: str, arguments: dict[str, Any], folder: Path) -> None:
    """Run one step here, its artifacts in `folder/<output name>`, as DVC does.

    Raises NarrowcastError when an input artifact is not there yet.
    """
    this = step(name)
    given: dict[str, Any] = {key: arguments[parameter] for key, parameter in this.parameters.items()}
    for key, (producer, output) in this.artifacts.items():
        path = folder / output
        if not path.exists():
            raise NarrowcastError(f"step '{name}' needs {path}: run `narrowcast step {producer}` or `dvc repro` first")
        given[key] = dsl.Artifact(name=key, uri=str(path.resolve()))
    folder.mkdir(parents=True, exist_ok=True)
    for output in this.outputs:
        given[output] = dsl.Artifact(name=output, uri=str((folder / output).resolve()))
    this.function()(**given)
