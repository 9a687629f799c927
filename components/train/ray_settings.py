"""How a step's Ray cluster is made: the step parameter `ray`."""

from dataclasses import dataclass, field

from narrowcast.errors import NarrowcastError
from narrowcast.image import IMAGE
from narrowcast.pods import NAME, Toleration, check_cpu, check_memory


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
            check_cpu(name, getattr(self, name))
        for name in ("head_memory", "worker_memory"):
            check_memory(name, getattr(self, name))
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
