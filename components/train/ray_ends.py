"""What a RayJob's state and its pods' states mean for the step: how it stands, what it waits for, why it failed."""

from collections.abc import Iterable, Iterator
from typing import Any

from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.pods import GPU

Object = dict[str, Any]

PENDING, RUNNING, SUCCEEDED, FAILED = "pending", "running", "succeeded", "failed"
STUCK = {
    "ErrImagePull": "image",
    "ImagePullBackOff": "image",
    "InvalidImageName": "image",
    "CreateContainerConfigError": "secret",
    "CrashLoopBackOff": "crash",
}
"""Why a container does not start, and what that is about."""
SIZES = {"ray-head": "head_memory", "ray-worker": "worker_memory"}
"""Setting of a container's memory."""


def standing(job: Object) -> str:
    """How a job stands. It runs once its program does; until then, and between two tries, it is pending."""
    state, program = deployment(job), _status(job).get("jobStatus")
    if state == "Complete" and program == "SUCCEEDED":
        return SUCCEEDED
    if state in ("Complete", "Failed", "ValidationFailed", "Suspending", "Suspended"):
        return FAILED
    if job["metadata"].get("deletionTimestamp"):
        return FAILED
    return RUNNING if state == "Running" and program not in (None, "", "PENDING") else PENDING


def deployment(job: Object) -> str:
    """KubeRay's own word for a job's state."""
    return _status(job).get("jobDeploymentStatus") or "New"


def failure(job: Object, settings: RaySettings, *, said: str | None, lost: Iterable[str]) -> str:
    """Why a job failed, in one sentence. `said`: the step's own; `lost`: what became of pods, as `losses` has it."""
    name, status = job["metadata"]["name"], _status(job)
    message = " ".join((status.get("message") or "").split()) or "KubeRay gives no reason"
    state, reason = deployment(job), status.get("reason")
    pods = "; ".join(dict.fromkeys(lost))
    if job["metadata"].get("deletionTimestamp"):
        return deleted(name)
    if state in ("Suspending", "Suspended"):
        return f"RayJob {name} was suspended by someone, and the step has removed it: run the step again"
    if status.get("jobStatus") == "STOPPED":
        return f"the program of RayJob {name} was stopped by someone: run the step again"
    if reason == "DeadlineExceeded":
        return (
            f"RayJob {name} took longer than its {settings.active_deadline_seconds} s: raise "
            "ray.active_deadline_seconds, or give it more workers or fewer epochs"
        )
    if state == "ValidationFailed":
        return f"KubeRay takes no such RayJob ({message}): is KubeRay 1.7 or newer installed, as k8s/README.md says?"
    if pods:
        return f"{pods}{f' (the step ended with: {said})' if said else ''}"
    if said:
        return said
    if reason == "SubmissionFailed":
        return (
            f"the program of RayJob {name} was not handed in or its log was lost ({message}): see the log above, and "
            "whether the network policies let Ray's pods reach each other"
        )
    return f"RayJob {name} failed ({reason or state}: {message}): see the log above"


def deleted(name: str) -> str:
    return f"RayJob {name} was deleted by someone while it ran: run the step again"


def losses(pods: list[Object], settings: RaySettings) -> Iterator[tuple[str, str]]:
    """Of each pod that was lost, its name and a sentence."""
    for pod in pods:
        name, role, status = pod["metadata"]["name"], role_of(pod), pod.get("status", {})
        killed = [
            past["terminated"]
            for container in status.get("containerStatuses", [])
            for past in (container.get("state", {}), container.get("lastState", {}))
            if past.get("terminated", {}).get("reason") == "OOMKilled"
        ]
        taken = [c for c in status.get("conditions", []) if c["type"] == "DisruptionTarget" and c["status"] == "True"]
        if killed and role in SIZES:
            memory = getattr(settings, SIZES[role])
            yield name, f"pod {name} ran out of its {memory} of memory (OOMKilled): raise ray.{SIZES[role]}"
        elif killed:
            yield name, f"pod {name} ran out of memory (OOMKilled): run the step again"
        elif status.get("reason") == "Evicted" or taken:
            why = status.get("message") or (taken and taken[0].get("reason")) or "no reason is given"
            yield name, f"pod {name} was taken off its node ({why}): run the step again, or raise ray.retries"


def obstacle(pods: list[Object]) -> str | None:
    """What the first of the pods that do not run waits for, or None where all run or just start."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"pod {name} finds no node: {condition.get('message') or condition.get('reason')}"
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in STUCK:
                return f"pod {name} does not start: {waiting['reason']} {waiting.get('message') or ''}".rstrip()
    return None


def advice(obstacle: str, settings: RaySettings, num_workers: int) -> str:
    """How to mend what `obstacle` or a warning says."""
    longer = "wait for other jobs to end and raise ray.pending_deadline_seconds"
    if GPU in obstacle:
        return f"lower num_workers ({num_workers}), set ray.gpus_per_worker to 0 to train on CPUs, or {longer}"
    if "exceeded quota" in obstacle:
        return f"lower num_workers ({num_workers}) or the sizes in 'ray', raise the namespace's quota, or {longer}"
    if "Insufficient memory" in obstacle:
        return f"lower ray.worker_memory ({settings.worker_memory}) or ray.head_memory, or {longer}"
    if "Insufficient cpu" in obstacle:
        return f"lower num_workers ({num_workers}), ray.worker_cpu ({settings.worker_cpu}) or ray.head_cpu, or {longer}"
    if "taint" in obstacle:
        return "give ray.tolerations that the nodes' taints ask for"
    if "selector" in obstacle or "affinity" in obstacle:
        return f"give a node the labels of ray.node_selector ({settings.node_selector}), or change it"
    if any(reason in obstacle for reason, about in STUCK.items() if about == "image"):
        return f"bring the image {settings.image} to the nodes or a registry in reach, or change ray.image"
    if any(reason in obstacle for reason, about in STUCK.items() if about == "secret"):
        return f"make the secret {settings.secret} in the namespace, see k8s/README.md, or change ray.secret"
    if "PodSecurity" in obstacle or "forbidden" in obstacle:
        return f"look at the service account {settings.service_account} and the namespace's rules for pods"
    return longer


def role_of(pod: Object) -> str:
    """The name of the pod's main container: ray-head, ray-worker or submitter."""
    return str(pod["spec"]["containers"][0]["name"])


def _status(job: Object) -> Object:
    return job.get("status") or {}
