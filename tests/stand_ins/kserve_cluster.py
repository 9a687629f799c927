"""A Kubernetes API with KServe 0.20 behind it, over HTTP, for tests of the deploy step.

It takes server-side applies of InferenceServices as the API server does (unknown fields refused, fields of other
managers kept from harm, generations counted) and as KServe's webhook does, and carries them out as KServe's controller,
Knative and the kubelet would: each request is a moment in which something may have come further. What a pod comes to is
said by `fate`. `shares` has, for each moment since an endpoint first served, which revision got how many per cent of
the requests; None stands for requests that nobody answers.
"""

import contextlib
import copy
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

SCHEMAS = Path(__file__).parents[3] / "shared" / "k8s-schemas"
KIND = "inferenceservices.serving.kserve.io"
PATHS = {
    "service": r"/apis/serving\.kserve\.io/v1beta1/namespaces/([^/]+)/inferenceservices/([^/]+)",
    "route": r"/apis/gateway\.networking\.k8s\.io/v1/namespaces/([^/]+)/httproutes/([^/]+)",
    "pods": r"/api/v1/namespaces/([^/]+)/pods",
    "log": r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/log",
}
VERSION = "app.kubernetes.io/version"
ANNOTATION = "serving.kserve.io/deploymentMode"


def service_schema() -> dict[str, Any] | None:
    """The schema of an InferenceService that allows no field it does not name; None where it is not at hand."""
    path = SCHEMAS / "inferenceservice.serving.kserve.io.v1beta1.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    schema["properties"].setdefault("metadata", {"type": "object"})

    def closed(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                closed(item)
        elif isinstance(node, dict):
            if node.get("x-kubernetes-int-or-string"):
                node.update(type=["integer", "string"])
                node.pop("anyOf", None)
            elif "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node["additionalProperties"] = False
            for value in node.values():
                closed(value)

    closed(schema["properties"]["spec"])
    schema["additionalProperties"] = False
    return schema


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a pod: after it was asked for `asked` times it is ready, or has this state for good."""

    port: int = 0
    asked: int = 1
    waiting: dict[str, str] | None = None
    terminated: dict[str, Any] | None = None
    unschedulable: str = ""
    restarts: int = 0
    log: str = ""


@dataclass(kw_only=True)
class Pod:
    name: str
    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    fate: Fate
    seen: int = 0

    @property
    def comes_up(self) -> bool:
        return bool(self.fate.port)

    @property
    def ready(self) -> bool:
        return self.comes_up and self.seen >= self.fate.asked

    def body(self, namespace: str) -> dict[str, Any]:
        state: dict[str, Any] = {"running": {}}
        if self.fate.waiting:
            state = {"waiting": self.fate.waiting}
        elif self.fate.terminated:
            state = {"terminated": self.fate.terminated}
        container = {
            "name": "kserve-container",
            "image": self.spec["containers"][0]["image"],
            "imageID": "",
            "ready": self.ready,
            "restartCount": self.fate.restarts,
            "state": state,
        }
        conditions = [{"type": "Ready", "status": str(self.ready)}]
        if self.fate.unschedulable:
            unschedulable = {"status": "False", "reason": "Unschedulable", "message": self.fate.unschedulable}
            conditions.append({"type": "PodScheduled", **unschedulable})
        spec = copy.deepcopy(self.spec)
        spec["containers"][0]["ports"][0]["containerPort"] = self.fate.port or 8080
        return {
            "metadata": {"name": self.name, "namespace": namespace, "labels": self.labels},
            "spec": {"containers": spec["containers"]},
            "status": {
                "podIP": "127.0.0.1",
                "conditions": conditions,
                "containerStatuses": [] if self.fate.unschedulable else [container],
            },
        }


@dataclass(kw_only=True)
class RefusedError(Exception):
    status: int
    reason: str
    message: str


@dataclass(kw_only=True)
class KServeCluster:
    """`installed`: whether KServe is there; `shares_requests`: whether a canary in mode Standard gets its share, as
    after KServe 0.20 with the Gateway API. `faults`: answers to the next requests of a method, first come first served.
    `foreign`: fields of other managers, by path. `before_answer` is called with the method of each request."""

    fate: Callable[[dict[str, Any]], Fate]
    namespace: str = "narrowcast"
    installed: bool = True
    shares_requests: bool = False
    faults: list[tuple[str, int, dict[str, Any] | str]] = field(default_factory=list)
    foreign: dict[str, tuple[str, Any]] = field(default_factory=dict)
    before_answer: Callable[[str], None] = lambda _: None
    applied: list[dict[str, Any]] = field(default_factory=list)
    service: dict[str, Any] | None = None
    pods: list[Pod] = field(default_factory=list)
    shares: list[dict[str | None, float]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))
    _lock: Any = field(default_factory=threading.RLock)

    def answer(self, method: str, address: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any] | str]:
        self.before_answer(method)
        with self._lock:
            for number, (wanted, status, content) in enumerate(self.faults):
                if wanted == method:
                    del self.faults[number]
                    return status, content
            try:
                self._pass()
                found = self._answer(method, urlsplit(address), headers, body)
                self._pass()
                return 200, found
            except RefusedError as refused:
                told = {"status": "Failure", "message": refused.message, "reason": refused.reason}
                return refused.status, {"kind": "Status", "apiVersion": "v1", **told, "code": refused.status}

    def _answer(self, method: str, url: Any, headers: Any, body: bytes) -> dict[str, Any] | str:
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, names = next(
            (kind, found.groups()) for kind, path in PATHS.items() if (found := re.fullmatch(path, url.path))
        )
        if names[0] != self.namespace:
            missing = f'namespaces "{names[0]}" not found' if method == "PATCH" else f'{KIND} "{names[-1]}" not found'
            raise RefusedError(status=404, reason="NotFound", message=missing)
        match method, kind:
            case "GET", "service":
                if not self.service or self.service["metadata"]["name"] != names[1]:
                    raise RefusedError(status=404, reason="NotFound", message=f'{KIND} "{names[1]}" not found')
                return self.service
            case "PATCH", "service":
                wanted = ("application/apply-patch+yaml", "narrowcast", "Strict", None)
                told = headers["Content-Type"], query.get("fieldManager"), query.get("fieldValidation")
                if (*told, query.get("force")) != wanted:
                    self.violations.append(f"an apply with {told}")
                return self._apply(names[1], yaml.safe_load(body))
            case "GET", "route":
                return self._route(names[1])
            case "GET", "pods":
                labels = dict(pair.split("=") for pair in query["labelSelector"].split(","))
                chosen = [pod for pod in self.pods if labels.items() <= pod.labels.items()]
                return {"kind": "PodList", "items": [pod.body(self.namespace) for pod in chosen]}
            case "GET", "log":
                return next(pod.fate.log for pod in self.pods if pod.name == names[1])
        raise AssertionError(f"{method} {url.path} is not expected")

    def _apply(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if schema := service_schema():
            for error in jsonschema.Draft202012Validator(schema).iter_errors(body):
                where = ".".join(map(str, error.path))
                raise RefusedError(
                    status=400, reason="BadRequest", message=f"strict decoding error: {where} {error.message}"
                )
        for path, (manager, value) in self.foreign.items():
            found: Any = body
            for key in path.split("."):
                found = found.get(key, {})
            if found != value:
                message = f'Apply failed with 1 conflict: conflict with "{manager}": .{path}'
                raise RefusedError(status=409, reason="Conflict", message=message)
        self._admit(body)
        self.applied.append(copy.deepcopy(body))
        old = self.service
        new = {**copy.deepcopy(body), "status": copy.deepcopy(old["status"]) if old else {}}
        generation = old["metadata"]["generation"] if old else 0
        new["metadata"]["generation"] = generation + (not old or old["spec"] != new["spec"])
        self.service = new
        return new

    def _admit(self, body: dict[str, Any]) -> None:
        """What KServe's webhook checks of canaries and modes."""
        mode, stable = body["metadata"]["annotations"].get(ANNOTATION), body["spec"]["predictor"]
        problem = ""
        if self.service and self.service["metadata"]["annotations"][ANNOTATION] != mode:
            problem = "update rejected: deploymentMode cannot be changed"
        for canary in body["spec"].get("canary", []):
            predictor = canary["predictor"]
            if mode != "Standard":
                problem = "canary is only supported in Standard deployment mode"
            elif not predictor.get("name") or predictor["name"] == stable.get("name"):
                problem = "canary[0] predictor.name is required"
            elif predictor.get("maxReplicas"):
                problem = "canary must not set maxReplicas (canary uses fixed replicas)"
            elif predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
                problem = "canary minReplicas must not exceed stable predictor minReplicas"
        if problem:
            webhook = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
            raise RefusedError(status=403, reason="Forbidden", message=webhook + problem)

    def _route(self, name: str) -> dict[str, Any]:
        canaries = self.service["spec"].get("canary", []) if self.service else []
        if not self.shares_requests:
            raise RefusedError(status=404, reason="NotFound", message=f'httproutes "{name}" not found')
        ready = [canary["trafficPercent"] for canary in canaries if self._ready(f"{name}-canary-predictor")]
        weights = {f"{name}-predictor": 100 - sum(ready), **{f"{name}-canary-predictor": weight for weight in ready}}
        return {"spec": {"rules": [{"backendRefs": [{"name": to, "weight": part} for to, part in weights.items()]}]}}

    def _pass(self) -> None:
        """A moment passes."""
        if not self.service:
            return
        for pod in self.pods:
            pod.seen += 1
        if self.service["metadata"]["annotations"].get("serving.kserve.io/stop") == "true":
            self.pods, shared = [], {}
            self.shares.clear()
        elif self.service["metadata"]["annotations"][ANNOTATION] == "Knative":
            shared = self._knative()
        else:
            shared = self._standard()
        ready = bool(shared) and None not in shared
        status = self.service["status"]
        if ready:
            status["url"] = f"http://{self.service['metadata']['name']}.example.com"
        told = {} if ready else {"reason": "NotReady", "message": "no pod is ready"}
        status["conditions"] = [{"type": "Ready", "status": str(ready), **told}]
        if ready or self.shares:
            self.shares.append(shared)

    def _standard(self) -> dict[str | None, float]:
        assert self.service
        name, spec = self.service["metadata"]["name"], self.service["spec"]
        least = spec["predictor"].get("minReplicas", 1)
        wanted = {f"{name}-predictor": (spec["predictor"], least)}
        for canary in spec.get("canary", []):
            merged = {**spec["predictor"], **canary["predictor"]}
            merged["labels"] = {**spec["predictor"].get("labels", {}), **canary["predictor"].get("labels", {})}
            replicas = canary["predictor"].get("minReplicas", math.ceil(least * canary["trafficPercent"] / 100))
            wanted[f"{name}-{canary['predictor']['name']}-predictor"] = merged, replicas
        self.pods = [pod for pod in self.pods if pod.owner in wanted]
        for owner, (predictor, replicas) in wanted.items():
            self._scale(owner, predictor, replicas, {"app": f"isvc.{owner}"})
            mine = [pod for pod in self.pods if pod.owner == owner]
            new = [pod for pod in mine if pod.labels[VERSION] == predictor["labels"][VERSION]]
            if sum(pod.ready for pod in new) >= replicas:  # the rolling update is done
                self.pods = [pod for pod in self.pods if pod.owner != owner or pod in new]
        share = sum(canary["trafficPercent"] for canary in spec.get("canary", []))
        if not self.shares_requests or not self._ready(f"{name}-canary-predictor"):
            share = 0
        shared: dict[str | None, float] = {}
        for owner, percent in ((f"{name}-predictor", 100 - share), (f"{name}-canary-predictor", share)):
            pods = self._ready(owner)
            for pod in pods if percent else []:
                key = pod.labels[VERSION]
                shared[key] = shared.get(key, 0) + percent / len(pods)
            if percent and not pods:
                shared[None] = percent
        return shared

    def _knative(self) -> dict[str | None, float]:
        assert self.service
        name, predictor = self.service["metadata"]["name"], dict(self.service["spec"]["predictor"])
        percent = predictor.pop("canaryTrafficPercent", None)
        component = self.service["status"].setdefault("components", {}).setdefault("predictor", {})
        revisions = component.setdefault("_revisions", [])
        if not revisions or revisions[-1][1] != predictor:
            revisions.append((f"{name}-predictor-{len(revisions) + 1:05}", predictor))
        created = component["latestCreatedRevision"] = revisions[-1][0]
        self._scale(created, predictor, predictor["minReplicas"], {"serving.knative.dev/revision": created})
        if self._ready(created):
            component["latestReadyRevision"] = created
        latest, rolled_out = component.get("latestReadyRevision"), component.get("latestRolledoutRevision")
        traffic = [{"revisionName": latest, "latestRevision": True, "percent": 100}] if latest else []
        if latest and percent is not None and rolled_out:
            traffic[0]["percent"] = percent
            traffic.append({"revisionName": rolled_out, "latestRevision": False, "percent": 100 - percent})
        elif latest:
            component["latestRolledoutRevision"] = latest
        component["traffic"] = traffic
        kept = {created, latest, component.get("latestRolledoutRevision")}
        self.pods = [pod for pod in self.pods if pod.owner in kept]
        shared: dict[str | None, float] = {}
        for to in traffic:
            pods = self._ready(to["revisionName"])
            key = pods[0].labels[VERSION] if pods else None
            if to["percent"]:
                shared[key] = shared.get(key, 0) + to["percent"]
        return shared

    def _scale(self, owner: str, predictor: dict[str, Any], replicas: int, labels: dict[str, str]) -> None:
        assert self.service
        version = predictor["labels"][VERSION]
        there = sum(pod.owner == owner and pod.labels[VERSION] == version for pod in self.pods)
        for _ in range(replicas - there):
            name = f"{owner}-{next(self._numbers)}"
            labelled = {**predictor["labels"], **labels}
            labelled["serving.kserve.io/inferenceservice"] = self.service["metadata"]["name"]
            self.pods.append(Pod(name=name, owner=owner, labels=labelled, spec=predictor, fate=self.fate(predictor)))

    def _ready(self, owner: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.owner == owner and pod.ready]


@contextlib.contextmanager
def serving(cluster: KServeCluster, kubeconfig: Path) -> Iterator[str]:
    """The cluster's API on a free port, which `kubeconfig` names then."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            found = cluster.answer(self.command, self.path, self.headers, self.rfile.read(length))
            if not cluster.installed and KIND.partition(".")[0] in self.path:
                found = 404, "404 page not found\n"
            status, content = found
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(text.encode())

        do_PATCH = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
