"""A Kubernetes API over HTTP that knows RayJobs, pods, logs and events; a test says what becomes of a job there."""

import contextlib
import copy
import functools
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from narrowcast.components.train.ray_manifest import INSTANCE

SCHEMA = Path(__file__).parents[3] / "shared" / "k8s-schemas" / "rayjob.ray.io.v1.json"
JOBS = re.compile(r"/apis/ray\.io/v1/namespaces/(?P<namespace>[^/]+)/rayjobs(?:/(?P<name>[^/]+))?")
PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods")
LOG = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods/(?P<name>[^/]+)/log")
EVENTS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/events")


def strict(schema):
    """`schema` with every field refused that it does not name, as an API server refuses it that is asked to."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        schema["items"] = strict(schema["items"])
    return schema


@functools.cache
def definition():
    """The cluster's definition of RayJobs, if it is here."""
    return jsonschema.Draft202012Validator(strict(json.loads(SCHEMA.read_text()))) if SCHEMA.exists() else None


def check(body):
    """Raises jsonschema.ValidationError for what is no RayJob by that definition."""
    if found := definition():
        found.validate(body)


class Fault:
    """What the next request to `path` by `method` meets: an answer of `status`, or a connection cut off (0)."""

    def __init__(self, method: str, path: str, status: int, message: str = "", times: int = 1) -> None:
        self.method, self.path, self.status, self.message, self.times = method, path, status, message, times

    def meets(self, method: str, path: str) -> bool:
        if self.times and method == self.method and re.search(self.path, path):
            self.times -= 1
            return True
        return False


class Cluster:
    """The API's state. `operator(cluster, name)` runs in a thread of its own for each job that is made."""

    def __init__(self) -> None:
        self.jobs, self.pods, self.logs, self.warnings = {}, {}, {}, {}
        self.created, self.deleted, self.faults, self.requests = [], [], [], []
        self.operator = lambda cluster, name: None
        self.changes = threading.Condition(threading.RLock())
        self.history = []
        self.version = 100
        self.oldest = 0
        """Of what versions the changes are still known."""

    def change(self, kind: str, job) -> None:
        with self.changes:
            self.version += 1
            job["metadata"]["resourceVersion"] = str(self.version)
            self.history.append((self.version, kind, copy.deepcopy(job)))
            self.changes.notify_all()

    def create(self, body):
        with self.changes:
            name = body["metadata"]["name"]
            body["metadata"]["uid"] = f"uid-{self.version}"
            self.jobs[name] = body
            self.created.append(copy.deepcopy(body))
            self.change("ADDED", body)
        threading.Thread(target=self.operator, args=(self, name), daemon=True).start()
        return body

    def delete(self, name: str) -> None:
        with self.changes:
            job = self.jobs.pop(name)
            self.deleted.append(name)
            self.pods = {key: pod for key, pod in self.pods.items() if labels(pod).get(INSTANCE) != name}
            self.change("DELETED", job)

    def say(self, name: str, state: str, program: str = "", **more: str) -> None:
        """KubeRay's word on a job."""
        with self.changes:
            if name in self.jobs:
                self.jobs[name]["status"] = {"jobDeploymentStatus": state, "jobStatus": program, **more}
                self.change("MODIFIED", self.jobs[name])

    def pod(self, job: str, name: str, container: str, **status) -> None:
        with self.changes:
            self.pods[name] = {
                "metadata": {"name": name, "labels": {INSTANCE: job}},
                "spec": {"containers": [{"name": container}]},
                "status": {"phase": "Running", **status},
            }

    def log(self, pod: str, *lines: str) -> None:
        """What a pod prints, each line a second later."""
        said = self.logs.setdefault(pod, [])
        for line in lines:
            said.append(f"2026-01-01T00:00:{len(said):02}.000000000Z {line}")

    def wait_for(self, name: str) -> bool:
        """Whether somebody waits for the job's next change; at most for some seconds."""
        for _ in range(100):
            if any(name in path and "watch=True" in path for _, path in self.requests):
                return True
            time.sleep(0.05)
        return False


def labels(found):
    return found["metadata"].get("labels", {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_DELETE(self) -> None:
        self.handle_one("DELETE")

    def handle_one(self, method: str) -> None:
        url = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.cluster.requests.append((method, self.path))
        for fault in self.cluster.faults:
            if fault.meets(method, self.path):
                if not fault.status:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(fault.status, {"kind": "Status", "message": fault.message, "code": fault.status})
                return
        if found := JOBS.fullmatch(url.path):
            self.rayjobs(method, found["name"], asked, body)
        elif found := LOG.fullmatch(url.path):
            self.stream(f"{line}\n" for line in self.cluster.logs.get(found["name"], []))
        elif PODS.fullmatch(url.path):
            key, _, value = asked["labelSelector"].partition("=")
            pods = [pod for pod in list(self.cluster.pods.values()) if labels(pod).get(key) == value]
            self.answer(200, {"kind": "PodList", "items": pods})
        elif EVENTS.fullmatch(url.path):
            name = asked["fieldSelector"].split(",")[0].partition("=")[2]
            self.answer(200, {"items": [{"message": line} for line in self.cluster.warnings.get(name, [])]})
        else:
            self.answer(404, {"kind": "Status", "message": f"no {url.path}", "code": 404})

    def rayjobs(self, method: str, name, asked, body) -> None:
        cluster = self.cluster
        if method == "POST":
            try:
                check(body)
            except jsonschema.ValidationError as error:
                self.answer(422, {"kind": "Status", "message": error.message, "code": 422})
                return
            if body["metadata"]["name"] in cluster.jobs:
                self.answer(409, {"kind": "Status", "reason": "AlreadyExists", "message": "there is one", "code": 409})
            else:
                self.answer(201, cluster.create(body))
        elif name is None and asked.get("watch") == "True":
            self.watch(asked)
        elif name not in cluster.jobs:
            self.answer(404, {"kind": "Status", "reason": "NotFound", "message": f'"{name}" not found', "code": 404})
        elif method == "DELETE":
            assert asked.get("propagationPolicy") == "Background" or body.get("propagationPolicy") == "Background"
            cluster.delete(name)
            self.answer(200, {"kind": "Status", "status": "Success"})
        else:
            self.answer(200, cluster.jobs[name])

    def watch(self, asked) -> None:
        cluster, since = self.cluster, int(asked["resourceVersion"])
        name = asked["fieldSelector"].partition("=")[2]
        if since < cluster.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self.stream([json.dumps({"type": "ERROR", "object": gone}) + "\n"])
            return
        self.stream(self.events(name, since, time.monotonic() + int(asked["timeoutSeconds"])))

    def events(self, name: str, since: int, until: float):
        while (left := until - time.monotonic()) > 0:
            with self.cluster.changes:
                new = [e for e in self.cluster.history if e[0] > since and e[2]["metadata"]["name"] == name]
                if not new:
                    self.cluster.changes.wait(left)
                    continue
            for version, kind, job in new:
                since = version
                yield json.dumps({"type": kind, "object": job}) + "\n"

    def answer(self, status: int, body) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, lines) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines:
                self.wfile.write(f"{len(line.encode()):x}\r\n".encode() + line.encode() + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True


@contextlib.contextmanager
def serving(kubeconfig: Path) -> Iterator[Cluster]:
    """A cluster's API at the address that is written to `kubeconfig`."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    settings = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "current-context": "here",
    }
    kubeconfig.write_text(yaml.safe_dump(settings))
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
