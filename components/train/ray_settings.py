"""How a step's Ray cluster is made: the step parameter `ray`."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from narrowcast.errors import NarrowcastError
from narrowcast.image import IMAGE

CPU = re.compile(r"\d+(\.\d+)?|\d+m")
MEMORY = re.compile(r"\d+(\.\d+)?([kMGTPE]i?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Toleration:
    """A taint of nodes that a worker's pod does not mind; `seconds` bounds how long it stays on one with NoExecute."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    seconds: int | None = None

    def __post_init__(self) -> None:
        if self.operator == "Exists" and self.value:
            raise NarrowcastError(f"toleration of '{self.key}': operator Exists takes no value; remove '{self.value}'")
        if not self.key and self.operator == "Equal":
            raise NarrowcastError("a toleration with operator Equal needs a key; give one, or operator Exists for all")
        if self.seconds is not None and self.effect != "NoExecute":
            raise NarrowcastError(f"toleration of '{self.key}': seconds count for the effect NoExecute alone")

    def body(self) -> dict[str, Any]:
        """As a pod has it."""
        said = {"key": self.key, "operator": self.operator, "value": self.value, "effect": self.effect}
        seconds = {} if self.seconds is None else {"tolerationSeconds": self.seconds}
        return {name: value for name, value in said.items() if value} | seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class RaySettings:
    """The RayJob of KubeRay that a step is carried out by.

    `home`: the object storage below which the job keeps its files while it lasts. `image`: that of every pod.
    `namespace`: where; empty, the step's own. `service_account`: of the pods, which get no token. `secret`: its keys
    are the environment by which the pods reach object storage. `head_cpu` and `head_memory`: of the head, which
    prepares, measures and writes; `worker_cpu` and `worker_memory`: of each worker, of which the step's `num_workers`
    says how many. `gpus_per_worker`: 1 trains on GPUs. `node_selector` and `tolerations` place the workers.
    `pending_deadline_seconds` ends a job whose pods find no place, `active_deadline_seconds` one that takes longer.
    `ttl_seconds`: how long a finished cluster stays where the step is not there to remove it. `retries`: how often a
    job that failed starts again on a new cluster, a training from its last checkpoint. A worker that dies needs none:
    Ray starts it again.
    """

    home: str
    image: str = IMAGE
    namespace: str = ""
    service_account: str = "narrowcast-ray"
    secret: str = "narrowcast-s3"
    head_cpu: str = "1"
    head_memory: str = "4Gi"
    worker_cpu: str = "1"
    worker_memory: str = "4Gi"
    gpus_per_worker: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    pending_deadline_seconds: int = 900
    active_deadline_seconds: int = 86400
    ttl_seconds: int = 60
    retries: int = 0

    def __post_init__(self) -> None:
        if "://" not in self.home:
            raise NarrowcastError(f"home is '{self.home}': give an address of object storage, such as s3://bucket/home")
        for name in ("head_cpu", "worker_cpu"):
            if not CPU.fullmatch(getattr(self, name)):
                raise NarrowcastError(f"{name} is '{getattr(self, name)}': give a number of cores, such as 500m or 2")
        for name in ("head_memory", "worker_memory"):
            if not MEMORY.fullmatch(getattr(self, name)):
                raise NarrowcastError(f"{name} is '{getattr(self, name)}': write it as Kubernetes does, such as 4Gi")
        for name in ("service_account", "secret"):
            if not NAME.fullmatch(getattr(self, name)):
                raise NarrowcastError(f"{name} is '{getattr(self, name)}': give the name of one in the namespace")
        if self.gpus_per_worker not in (0, 1):
            raise NarrowcastError(
                f"gpus_per_worker is {self.gpus_per_worker}: a worker trains on one GPU or on none; raise num_workers"
            )
        least = {"pending_deadline_seconds": 1, "active_deadline_seconds": 1, "ttl_seconds": 0, "retries": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least {value}")
