"""How a model is served on a cluster: the step parameter `kserve`."""

from dataclasses import dataclass, field
from typing import Literal

from narrowcast.errors import NarrowcastError
from narrowcast.image import IMAGE
from narrowcast.pods import NAME, Toleration, check_cpu, check_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class KServeSettings:
    """The InferenceService that an endpoint is, and how a new model comes to serve there.

    `namespace`: where the predictors are. `image`: theirs. `service_account`: theirs, with the secret by which KServe's
    storage initialiser reads object storage. `redis_secret`: its key `password` is that of the online store; empty, the
    predictors are given none. `mode`: KServe's deployment mode. `min_replicas` and `max_replicas`: predictors that wait
    and that load may add; `cpu` and `memory`: of each. `ready_seconds`: how long a new predictor may take until it is
    ready. `smoke_requests`: how often a new model's predictors are sent its sample request before any other.
    `canary_percents`: the shares of all requests that the new model then has, one after the other for
    `canary_seconds` each, before it has all; none, it has all at once. `node_selector` and `tolerations` place the
    predictors; mode Knative takes them where Knative's features for them are on.
    """

    namespace: str = "narrowcast"
    image: str = IMAGE
    service_account: str = "narrowcast-predictor"
    redis_secret: str = "narrowcast-redis"
    mode: Literal["Standard", "Knative"] = "Standard"
    min_replicas: int = 1
    max_replicas: int = 1
    cpu: str = "1"
    memory: str = "2Gi"
    ready_seconds: int = 600
    smoke_requests: int = 20
    canary_percents: tuple[int, ...] = ()
    canary_seconds: int = 60
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()

    def __post_init__(self) -> None:
        for name in ("namespace", "service_account", *(("redis_secret",) if self.redis_secret else ())):
            if not NAME.fullmatch(getattr(self, name)):
                raise NarrowcastError(f"{name} is '{getattr(self, name)}': use small letters, digits and '-'")
        check_cpu("cpu", self.cpu)
        check_memory("memory", self.memory)
        for name in ("min_replicas", "ready_seconds", "smoke_requests", "canary_seconds"):
            if getattr(self, name) < 1:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.max_replicas < self.min_replicas:
            raise NarrowcastError(
                f"max_replicas is {self.max_replicas}: must be at least min_replicas, {self.min_replicas}"
            )
        shares = self.canary_percents
        if list(shares) != sorted(set(shares)) or not all(0 < share < 100 for share in shares):
            raise NarrowcastError(
                f"canary_percents are {list(shares)}: give rising whole numbers from 1 to 99, such as [10, 50]"
            )
