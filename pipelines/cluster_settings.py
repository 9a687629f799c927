"""How a run is placed on a cluster: the section `cluster` of params.yaml, which a run on this machine ignores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.image import IMAGE
from narrowcast.pipelines import parameters
from narrowcast.pipelines.graph import steps
from narrowcast.pods import Toleration, check_cpu, check_memory
from narrowcast.settings import build

DEFAULT = "default"
"""Stands for every step in `steps`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What a step's pod asks for. Empty or 0: nothing is said, and the cluster's own default counts.

    `cpu` and `memory` are requested and at most used, as Kubernetes writes quantities. `timeout_seconds` ends a step
    that takes longer, `retries` starts one that failed again; `cache` takes a step's outputs from an earlier run with
    the same inputs.
    """

    cpu: str = ""
    memory: str = ""
    gpus: int = 0
    timeout_seconds: int = 0
    retries: int = 0
    cache: bool = True
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()

    def __post_init__(self) -> None:
        if self.cpu:
            check_cpu("cpu", self.cpu)
        if self.memory:
            check_memory("memory", self.memory)
        for name in ("gpus", "timeout_seconds", "retries"):
            if getattr(self, name) < 0:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """The section `cluster` of params.yaml.

    `host`: the address of Kubeflow Pipelines; empty, what its client is configured with. `namespace`: where steps run.
    `home`: the object storage that endpoints and Ray jobs keep their files in. `parameters`: inputs of the pipeline
    that have other values on the cluster. `secrets`: of each secret, the environment variable that each key becomes in
    every step. `steps`: by step, or `default` for all; a step's own settings replace the default's one by one. `ray`
    and `kserve`: settings of the RayJobs (`RaySettings`) and of the predictor (`KServeSettings`) beyond `home`, `image`
    and, for RayJobs, `namespace`, which are those given here. On a cluster without KubeRay `ray` is null, and steps
    train in their own pods; on one without KServe `kserve` is null, and nothing is deployed.
    """

    host: str = ""
    experiment: str = "narrowcast"
    namespace: str = "kubeflow"
    image: str = IMAGE
    home: str = "s3://narrowcast/home"
    service_account: str = "narrowcast-pipeline"
    parameters: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    ray: dict[str, Any] | None = field(default_factory=dict)
    kserve: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "://" not in self.home:
            raise NarrowcastError(f"home is '{self.home}': give an address of object storage, such as s3://bucket/home")
        for name in self.steps:
            if name != DEFAULT and name not in steps():
                raise NarrowcastError(f"steps: no step '{name}'; {nearest(name, [DEFAULT, *steps()])}")
            self.step(name)

    def step(self, name: str) -> StepSettings:
        """The settings of one step."""
        merged = self.steps.get(DEFAULT, {}) | self.steps.get(name, {})
        where = f"steps: {name}"
        try:
            found: StepSettings = build(StepSettings, merged, where)
        except NarrowcastError as error:
            raise _placed(error, where) from None
        return found

    @property
    def ray_argument(self) -> dict[str, Any]:
        """What the steps that train and search are given."""
        if self.ray is None:
            return {}
        return {"home": self.home, "image": self.image, "namespace": self.namespace, **self.ray}

    @property
    def kserve_argument(self) -> dict[str, Any]:
        """What the deploy step is given."""
        return {} if self.kserve is None else {"image": self.image, **self.kserve}


def load(path: Path, changes: Mapping[str, str] | None = None) -> ClusterSettings:
    """The section `cluster` of a parameter file with `changes` applied, such as `cluster.ray.retries=2`.

    Raises NarrowcastError that begins with the file's name, for whatever a step would refuse, too.
    """
    from narrowcast.components.serve.kserve_settings import KServeSettings
    from narrowcast.components.train.ray_settings import RaySettings

    where = f"{path}: {parameters.CLUSTER}"
    section = parameters.read(path, changes).get(parameters.CLUSTER) or {}
    if not isinstance(section, dict):
        raise NarrowcastError(f"{where} must be a mapping; see docs/cluster.md")
    try:
        settings: ClusterSettings = build(ClusterSettings, section, where)
        for name, cls, argument in (
            ("ray", RaySettings, settings.ray_argument),
            ("kserve", KServeSettings, settings.kserve_argument),
        ):
            try:
                if argument:
                    build(cls, argument, name)
            except NarrowcastError as error:
                raise _placed(error, name) from None
        _check_timeouts(settings)
    except NarrowcastError as error:
        raise _placed(error, where) from None
    return settings


def _check_timeouts(settings: ClusterSettings) -> None:
    """A step that waits for a RayJob must outlive it: else it ends without a word, and the job without it."""
    from narrowcast.components.train.ray_settings import RaySettings

    if settings.ray is None:
        return
    ray: RaySettings = build(RaySettings, settings.ray_argument, "ray")
    longest = ray.pending_deadline_seconds + ray.active_deadline_seconds
    for name in ("train", "search", "retrain"):
        timeout = settings.step(name).timeout_seconds
        if 0 < timeout <= longest:
            raise NarrowcastError(
                f"steps: {name}: timeout_seconds is {timeout}, but its RayJob may wait and run for {longest} s: raise "
                "it, or lower ray.active_deadline_seconds"
            )


def arguments(values: Mapping[str, Any], settings: ClusterSettings, root: Path) -> dict[str, Any]:
    """The pipeline's arguments on the cluster, from `values` as `parameters.load` gives them.

    Raises NarrowcastError for a parameter that names a place of this machine.
    """
    given = {**values, **parameters.checked(settings.parameters, f"{parameters.CLUSTER}.parameters")}
    if settings.kserve is None:
        given["endpoint"] = ""
    if "://" not in given["data_remote"]:
        raise NarrowcastError(
            f"data_remote is '{given['data_remote']}', which no pod can reach: set cluster.parameters.data_remote to "
            "the address of a DVC remote, such as s3://bucket/data"
        )
    return parameters.complete(
        given,
        home=settings.home,
        root=root,
        champion=f"{settings.home.rstrip('/')}/endpoints/{given['endpoint']}.json" if given["endpoint"] else "",
        ray=settings.ray_argument,
        kserve=settings.kserve_argument,
    )


def _placed(error: NarrowcastError, where: str) -> NarrowcastError:
    """The error with the place in front of it, where it does not say so itself."""
    text = str(error)
    return NarrowcastError(text if text.startswith(where) else f"{where}: {text}")
