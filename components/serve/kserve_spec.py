"""The InferenceService that an endpoint is: KServe's `serving.kserve.io/v1beta1`, with this package's server in it.

Mode Standard has a second predictor as a canary beside the first (`spec.canary`, KServe 0.20). Mode Knative has one
predictor whose newest revision gets a share of the requests, the revision rolled out last the rest
(`canaryTrafficPercent`).
"""

import hashlib
import json
from typing import Any

from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.components.serve.process import SERVER

GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
CONTAINER = "kserve-container"
MOUNT = "/mnt/models"
"""Where KServe's storage initialiser puts what STORAGE_URI names."""
HTTP_PORT, GRPC_PORT = 8080, 8081
LINGER_SECONDS = 5
"""Of requests taken after SIGTERM: until then whoever routes them knows that the pod goes."""
DRAIN_SECONDS = 20
GRACE_SECONDS = LINGER_SECONDS + DRAIN_SECONDS + 5
CANARY = "canary"
REVISION = "app.kubernetes.io/version"
"""The label of a predictor's pods that tells what they run, `revision`."""
LABELS = {"app.kubernetes.io/part-of": "narrowcast", "app.kubernetes.io/component": "predictor"}
STOP = f"{GROUP}/stop"

Predictor = dict[str, Any]
Body = dict[str, Any]


def predictor(settings: KServeSettings, model: str, address: str) -> Predictor:
    """The predictor that serves `<address>/model`, under the name `model`, with the store `<address>/store`."""
    spec: Predictor = {
        "minReplicas": settings.min_replicas,
        "maxReplicas": settings.max_replicas,
        "serviceAccountName": settings.service_account,
        "containers": [_container(settings, model, address)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "labels": LABELS,
    }
    if settings.node_selector:
        spec["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        spec["tolerations"] = [toleration.body() for toleration in settings.tolerations]
    if settings.mode == "Standard":  # Knative lets nobody say how its pods end and are replaced
        spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
        spec["deploymentStrategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
        }
    text = json.dumps(spec, sort_keys=True)
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return spec | {"labels": LABELS | {REVISION: digest[:10]}}


def _container(settings: KServeSettings, model: str, address: str) -> dict[str, Any]:
    ready = {"httpGet": {"path": f"/v2/models/{model}/ready", "port": HTTP_PORT}, "periodSeconds": 2}
    alive = {"httpGet": {"path": "/v2/health/live", "port": HTTP_PORT}}
    arguments = ["--model", f"{MOUNT}/model", "--store", f"{MOUNT}/store", "--host", "0.0.0.0", "--name", model]
    arguments += ["--port", str(HTTP_PORT)]
    arguments += ["--linger-seconds", str(LINGER_SECONDS), "--drain-seconds", str(DRAIN_SECONDS)]
    env: list[dict[str, Any]] = [{"name": "STORAGE_URI", "value": address}]
    if settings.redis_secret:
        password = {"secretKeyRef": {"name": settings.redis_secret, "key": "password"}}
        env.append({"name": "NARROWCAST_REDIS_PASSWORD", "valueFrom": password})
    size = {"cpu": settings.cpu, "memory": settings.memory}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "command": ["python", "-m", SERVER],
        "args": arguments,
        "env": env,
        "ports": [{"name": "http1", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        "readinessProbe": ready,
        "resources": {"requests": size, "limits": size},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    if settings.mode == "Standard":  # Knative has its own probes, and one port a container
        container["args"] = [*arguments, "--grpc-port", str(GRPC_PORT)]
        container["ports"].append({"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"})
        container["startupProbe"] = {**alive, "periodSeconds": 2, "failureThreshold": -(-settings.ready_seconds // 2)}
        container["livenessProbe"] = {**alive, "periodSeconds": 10, "timeoutSeconds": 5}
    return container


def revision(spec: Predictor) -> str:
    """What a predictor runs, in ten letters: equal for equal predictors only."""
    return str(spec["labels"][REVISION])


def storage_address(spec: Predictor) -> str:
    """Where a predictor has its model from; empty for one that is none of ours."""
    env = [entry for container in spec.get("containers") or [] for entry in container.get("env") or []]
    return next((str(entry.get("value", "")) for entry in env if entry["name"] == "STORAGE_URI"), "")


def service(endpoint: str, mode: str, spec: Predictor, *, stopped: bool = False) -> Body:
    """The InferenceService in which this predictor serves all requests, or in which nothing runs."""
    annotations = {f"{GROUP}/deploymentMode": mode}
    if mode == "Knative":
        annotations[f"{GROUP}/enable-tag-routing"] = "true"  # a revision that nothing leads to would be scaled away
    if stopped:
        annotations[STOP] = "true"
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {
            "name": endpoint,
            "labels": {"app.kubernetes.io/part-of": "narrowcast"},
            "annotations": annotations,
        },
        "spec": {"predictor": spec},
    }


def with_canary(endpoint: str, mode: str, champion: Predictor, challenger: Predictor, percent: int) -> Body:
    """The InferenceService in which the challenger gets `percent` of the requests, and the champion the rest.

    In mode Knative the champion is the revision rolled out last, whatever the predictor said here is.
    """
    if mode == "Knative":
        return service(endpoint, mode, challenger | {"canaryTrafficPercent": percent})
    body = service(endpoint, mode, champion)
    beside = {key: value for key, value in challenger.items() if key not in ("minReplicas", "maxReplicas")}
    if not percent:
        beside["minReplicas"] = 1  # a share of no requests would be given no pod
    body["spec"]["canary"] = [{"predictor": beside | {"name": CANARY}, "trafficPercent": percent}]
    return body
