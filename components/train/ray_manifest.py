"""A step's RayJob as KubeRay takes it, and its name."""

import hashlib
import json
import re
from importlib.metadata import version
from typing import Any

from narrowcast.components.train.ray_defaults import DEFAULTS, OBJECT_STORE_BYTES
from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.pods import GPU, USER, cores

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
MOST_NAME = 47
"""Characters of a RayJob's name that KubeRay leaves room for."""
IDENTITY = "narrowcast/step"
"""Annotation that says whose job it is: of which run, step, parameters and inputs."""
TRY = "narrowcast/try"
"""Annotation that differs each time the step is tried."""
INSTANCE = "app.kubernetes.io/instance"
"""Label that a job's pods share; its value is the job's name."""


def identity(run: str, given: dict[str, Any]) -> str:
    """The same for the same work of the same run: what `given` says of it, in hexadecimal digits."""
    text = json.dumps([run, given], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def job_name(run: str, step: str, identity: str) -> str:
    """A name that KubeRay takes: run, step and a short hash, lower case, from a letter on, not too long."""
    tail = f"-{step}-{identity[:8]}"
    head = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    head = head if head[:1].isalpha() else f"run-{head}"
    return re.sub(r"-+", "-", head[: MOST_NAME - len(tail)] + tail.replace("_", "-"))


def manifest(
    settings: RaySettings,
    *,
    name: str,
    namespace: str,
    address: str,
    num_workers: int,
    annotations: dict[str, str],
    owner: dict[str, Any] | None,
) -> dict[str, Any]:
    """The RayJob that runs the step whose job file lies at `address`; gone with its `owner`, where it has one.

    A worker's pod has room for one of Ray's workers, which has all its cores; the head has room for none. The step's
    program runs on the head; a pod of its own hands it in there and prints what it prints.
    """
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels(name),
            "annotations": annotations,
            **({"ownerReferences": [owner]} if owner else {}),
        },
        "spec": {
            "entrypoint": f"python -m narrowcast.components.train.ray_main {address}",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            "activeDeadlineSeconds": settings.active_deadline_seconds,
            # The step itself ends a job that finds no place, and says why; this one is for where the step is gone.
            "preRunningDeadlineSeconds": settings.pending_deadline_seconds + 120,
            "backoffLimit": settings.retries,
            "suspend": False,
            "submitterPodTemplate": _pod(
                settings, name, _container(settings, "submitter", cpu="250m", memory="512Mi"), restartPolicy="Never"
            ),
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {**_start(), "num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod(settings, name, _head(settings)),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": num_workers,
                        "minReplicas": num_workers,
                        "maxReplicas": num_workers,
                        "rayStartParams": {**_start(), "num-cpus": "1"},
                        "template": _pod(settings, name, _worker(settings), **_placement(settings)),
                    }
                ],
            },
        },
    }


def labels(name: str) -> dict[str, str]:
    """Of the job and its pods; network policies select them."""
    return {
        "app.kubernetes.io/part-of": "narrowcast",
        "app.kubernetes.io/component": "ray",
        INSTANCE: name,
    }


def _start() -> dict[str, str]:
    return {"object-store-memory": str(OBJECT_STORE_BYTES)}


def _head(settings: RaySettings) -> dict[str, Any]:
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    return {
        **_ray_container(settings, "ray-head", cpu=settings.head_cpu, memory=settings.head_memory),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
    }


def _worker(settings: RaySettings) -> dict[str, Any]:
    gpus = {GPU: str(settings.gpus_per_worker)} if settings.gpus_per_worker else {}
    return _ray_container(settings, "ray-worker", cpu=settings.worker_cpu, memory=settings.worker_memory, **gpus)


def _ray_container(settings: RaySettings, name: str, **resources: str) -> dict[str, Any]:
    container = _container(settings, name, **resources)
    # Ray itself would give a process as many threads as Ray counts cores for it.
    container["env"].append({"name": "OMP_NUM_THREADS", "value": str(cores(resources["cpu"]))})
    return {**container, "envFrom": [{"secretRef": {"name": settings.secret}}]}


def _container(settings: RaySettings, name: str, **resources: str) -> dict[str, Any]:
    environment = {"HOME": "/tmp", **DEFAULTS}
    return {
        "name": name,
        "image": settings.image,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(settings: RaySettings, name: str, container: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels(name)},
        "spec": {
            "serviceAccountName": settings.service_account,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 10,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
            ],
            **more,
        },
    }


def _placement(settings: RaySettings) -> dict[str, Any]:
    """What a pod says of the nodes that it may be on."""
    said = {
        "nodeSelector": settings.node_selector,
        "tolerations": [toleration.body() for toleration in settings.tolerations],
    }
    return {key: value for key, value in said.items() if value}
