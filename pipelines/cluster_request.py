"""What `submit` and `schedule` send: the package, the arguments and the names, all checked before anything leaves."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.pipelines import parameters
from narrowcast.pipelines.cluster_settings import DEFAULT, ClusterSettings, arguments
from narrowcast.pipelines.experiments import experiment_id
from narrowcast.pipelines.kfp_client import KFP
from narrowcast.pipelines.uploads import Version, upload, version_name

TYPES: dict[str, Any] = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A package that lies on this machine, the arguments it is run with, and what its version is to be called."""

    package: Path
    version: str
    arguments: dict[str, Any]
    settings: ClusterSettings


@contextmanager
def prepared(
    values: dict[str, Any], settings: ClusterSettings, root: Path, *, cached: bool, allow_dirty: bool
) -> Iterator[Request]:
    """A request that nothing is wrong with as far as this machine can tell; its package is gone after the block.

    `values` as `parameters.load` gives them. Caching is part of a version, as a server takes no other word on it for a
    run of an uploaded version. Raises NarrowcastError for arguments that the pipeline, or one of its steps, would
    refuse.
    """
    from narrowcast.pipelines.placement import write_package

    given = arguments(values, settings, root)
    cached = cached and not given["data_version"].startswith("latest:")  # KFP would take what was the latest before
    settings = settings if cached else _uncached(settings)
    version = version_name(given["git_commit"], cached=cached, allow_dirty=allow_dirty)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "training.yaml"
        write_package(settings, package)
        check_arguments(given, next(yaml.load_all(package.read_text(), Loader=yaml.CSafeLoader)))
        parameters.refuse_early(given)
        yield Request(package=package, version=version, arguments=given, settings=settings)


def place(kfp: KFP, request: Request, *, experiment: str | None, create_experiment: bool) -> tuple[Version, str]:
    """Upload the package unless it is there; returns its version and the experiment's id.

    Without `experiment` it is the settings' one, which is made where it is not there yet.
    """
    name = experiment or request.settings.experiment
    found = experiment_id(kfp, name, create=create_experiment or not experiment)
    return upload(kfp, request.package, request.version), found


def check_arguments(given: dict[str, Any], spec: dict[str, Any]) -> None:
    """Hold arguments against the inputs that a compiled pipeline declares: names, types, none missing."""
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    for name, value in given.items():
        if name not in inputs:
            raise NarrowcastError(f"the pipeline has no input '{name}'; {nearest(name, inputs)}")
        kind = inputs[name]["parameterType"]
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise NarrowcastError(f"the pipeline's input '{name}' is a {kind}, not '{value}'")
    for name, declared in inputs.items():
        if name not in given and not declared.get("isOptional"):
            raise NarrowcastError(f"the pipeline's input '{name}' is missing; set it in params.yaml")


def _uncached(settings: ClusterSettings) -> ClusterSettings:
    steps = {name: {**own, "cache": False} for name, own in {DEFAULT: {}, **settings.steps}.items()}
    return dataclasses.replace(settings, steps=steps)
