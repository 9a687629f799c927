"""What a predictor's pods say of themselves: whether they are ready, where they answer, and what ails them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from narrowcast.components.serve.kserve_spec import CONTAINER

if TYPE_CHECKING:
    from kubernetes.client import V1ContainerStatus, V1Pod

NO_IMAGE = frozenset({"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
NOT_MADE = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
CRASHES = 2
"""A container that ended that often in failure will not come up by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ailment:
    """Why a pod is not ready. `final`: waiting does not help. `container`: whose log says more, if one's does."""

    sentence: str
    final: bool = True
    container: str = ""


def is_ready(pod: "V1Pod") -> bool:
    return any(found.type == "Ready" and found.status == "True" for found in pod.status.conditions or [])


def url(pod: "V1Pod") -> str:
    """Where the pod's server answers, from inside the cluster."""
    port = next(found for found in pod.spec.containers if found.name == CONTAINER).ports[0].container_port
    host = f"[{pod.status.pod_ip}]" if ":" in pod.status.pod_ip else pod.status.pod_ip
    return f"http://{host}:{port}"


def restarts(pod: "V1Pod") -> int:
    return sum(found.restart_count for found in pod.status.container_statuses or [])


def ailment(pod: "V1Pod") -> Ailment | None:
    """What keeps a pod from being ready, None where it only needs time."""
    for found in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        if told := _of_container(pod.metadata.name, found):
            return told
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return Ailment(
                sentence=f"no node takes pod {pod.metadata.name} ({condition.message}): lower kserve.cpu or "
                "kserve.memory, or add nodes",
                final=False,
            )
    return None


def _of_container(pod: str, status: "V1ContainerStatus") -> Ailment | None:
    waiting, name = status.state.waiting, f"container {status.name} of pod {pod}"
    if waiting and waiting.reason in NO_IMAGE:
        return Ailment(
            sentence=f"the image {status.image} of {name} cannot be pulled ({waiting.message or waiting.reason}): "
            "bring it where the nodes find it, or set kserve.image"
        )
    if waiting and waiting.reason in NOT_MADE:
        return Ailment(sentence=f"{name} cannot be started: {waiting.message or waiting.reason}")
    end = status.state.terminated or (status.last_state and status.last_state.terminated)
    if not end or not end.exit_code or status.restart_count < CRASHES:
        return None
    if end.reason == "OOMKilled":
        return Ailment(sentence=f"{name} needs more memory than it may have: raise kserve.memory")
    return Ailment(sentence=f"{name} ends with status {end.exit_code}", container=status.name)
