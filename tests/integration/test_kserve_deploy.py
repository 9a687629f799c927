"""Deployments to KServe: the real client against a stand-in of the API, real predictors, models on an S3 endpoint."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from kserve_cluster import Fate, KServeCluster, serving
from kubernetes.config import kube_config
from moto.server import ThreadedMotoServer

from narrowcast import objects
from narrowcast.components.serve import kserve_api, kserve_rollout, kserve_spec, process
from narrowcast.components.serve.kserve_deploy import deploy, find_endpoint
from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json, write_json

SETTINGS = {"image": "narrowcast:test", "ready_seconds": 60, "smoke_requests": 2, "canary_seconds": 1}
PLACES = {"--model", "--store", "--host", "--port", "--grpc-port"}


@pytest.fixture(scope="module")
def endpoint_of_s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def home(endpoint_of_s3, monkeypatch) -> str:
    """An address of its own on object storage, which the environment names."""
    values = {
        "ENDPOINT_URL": endpoint_of_s3,
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client("s3").create_bucket(Bucket="narrowcast")
    return f"s3://narrowcast/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def ports(tiny_run, another_model, tmp_path_factory) -> Iterator[dict[str, int]]:
    """The ports of real predictors of the two models by their md5, started with the arguments of their container."""
    (container,) = kserve_spec.predictor(KServeSettings(), "tiny", "s3://bucket")["containers"]
    pairs = zip(container["args"][::2], container["args"][1::2], strict=True)
    options = [word for pair in pairs if pair[0] not in PLACES for word in pair]
    with contextlib.ExitStack() as started:
        found, lifelines = {}, []
        for model in (tiny_run.packed_model, another_model):
            log = tmp_path_factory.mktemp("predictor") / "server.log"
            server = process.start(model, tiny_run.feature_store, log, outlive=False, options=options)
            started.callback(os.kill, server.pid, signal.SIGKILL)
            lifelines.append(server.lifeline)
            found[digest(model)] = port_of(server.url)
        yield found


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


class Predictors:
    """What becomes of a pod: once its model and store lie where its STORAGE_URI says, a server of the same model."""

    def __init__(self, ports: dict[str, int], folder: Path) -> None:
        self.ports, self.folder = ports, folder
        self.fates: dict[str, Fate] = {}

    def __call__(self, predictor: dict) -> Fate:
        address = kserve_spec.storage_address(predictor)
        md5 = address.rpartition("/")[2]
        if md5 in self.fates:
            return self.fates[md5]
        objects.fetch(address, self.folder)
        assert digest(self.folder / "model") == md5
        assert (self.folder / "store" / "registry.db").is_file()
        return Fate(port=self.ports[md5])


@pytest.fixture
def predictors(ports, tmp_path) -> Predictors:
    return Predictors(ports, tmp_path / "fetched")


@pytest.fixture
def cluster(predictors, home, tmp_path, monkeypatch):
    """A cluster that takes no time, whose API this process and its children find."""
    monkeypatch.setattr(kserve_rollout, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(kserve_rollout, "SHARE_SECONDS", 0.5)
    monkeypatch.setattr(kserve_api, "PAUSES", (0.01, 0.01))
    found = KServeCluster(fate=predictors)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    with serving(found, tmp_path / "kubeconfig"):
        yield found
    assert found.violations == []


@pytest.fixture
def run(tiny_run, tmp_path, home):
    """Deploys a model that was judged against what serves, and returns deployment.json."""

    def deployed(model: Path, endpoint: str = "shop", *, passed: bool = True, against: str | None = None, **settings):
        champion = find_endpoint(home, endpoint) if endpoint else None
        gate = {"name": "bytes", "value": 2, "limit": 1, "passed": passed, "sentence": "the tables weigh too much"}
        judged = {"passed": passed, "gates": [gate]}
        judged["champion_md5"] = against or (champion.model_md5 if champion else None)
        write_json(tmp_path / "evaluation" / "evaluation.json", judged)
        folder = tmp_path / "deployment"
        store, kserve = tiny_run.feature_store, SETTINGS | settings
        deploy(model, store, tmp_path / "evaluation", endpoint, home, folder, kserve=kserve)
        return read_json(folder / "deployment.json")

    return deployed


def state(home: str) -> dict:
    return objects.read_json(f"{home}/endpoints/shop.json")


def versions(cluster: KServeCluster) -> set[str]:
    return {pod.labels[kserve_spec.REVISION] for pod in cluster.pods}


def settled(cluster: KServeCluster, home: str) -> None:
    """The champion of the state file serves alone, and at no moment did a request go nowhere."""
    champion = state(home)["predictor"]
    for _ in range(3):
        cluster._pass()
    assert cluster.service["spec"] == {"predictor": champion}
    assert cluster.shares[-1] == {kserve_spec.revision(champion): 100}
    assert not any(None in moment for moment in cluster.shares)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_an_endpoints_life(mode, cluster, run, home, tiny_run, another_model):
    refused = run(tiny_run.packed_model, passed=False, mode=mode)
    assert refused["deployed"] is refused["kept_champion"] is False
    assert cluster.applied == []

    first = run(tiny_run.packed_model, mode=mode)
    assert first["deployed"]
    assert first["url"] == "http://shop.example.com"
    assert first["model_md5"] == digest(tiny_run.packed_model)
    settled(cluster, home)
    champion = state(home)
    assert objects.exists(f"{champion['model_path']}/manifest.json")

    again = run(tiny_run.packed_model, mode=mode, against="whatever it was when the run was first made")
    assert again["deployed"] is False
    assert again["kept_champion"] is True
    assert "already serves" in again["reason"]
    assert state(home) == champion

    cluster.shares_requests = True
    before = len(cluster.applied)
    second = run(another_model, mode=mode, canary_percents=[10, 50])
    assert second["deployed"] is True, second["reason"]
    settled(cluster, home)
    shares = [
        body["spec"]["canary"][0]["trafficPercent"]
        if mode == "Standard"
        else body["spec"]["predictor"]["canaryTrafficPercent"]
        for body in cluster.applied[before:-1]
    ]
    assert shares[:3] == [0, 10, 50]
    new = kserve_spec.revision(state(home)["predictor"])
    seen = [moment.get(new, 0) for moment in cluster.shares]
    assert {0, 10, 50, 100} <= set(seen)
    assert seen == sorted(seen)
    assert objects.exists(champion["model_path"]), "a run may still be judging against it"
    assert state(home)["previous_md5"] == champion["model_md5"]

    larger = run(another_model, mode=mode, cpu="2")
    assert larger["deployed"] is True, "the same model with other settings is rolled out as well"
    settled(cluster, home)
    assert state(home)["previous_md5"] == champion["model_md5"]

    back = run(tiny_run.packed_model, mode=mode)
    assert back["deployed"]
    settled(cluster, home)
    assert versions(cluster) == {kserve_spec.revision(state(home)["predictor"])}


def test_the_model_before_the_last_is_removed(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]
    objects.write_json(f"{home}/endpoints/shop/0123/model/manifest.json", {})
    objects.write_json(f"{home}/endpoints/shop.json", state(home) | {"previous_md5": "0123"})
    assert run(another_model)["deployed"]
    assert not objects.exists(f"{home}/endpoints/shop/0123")
    for model in (tiny_run.packed_model, another_model):
        assert objects.exists(f"{home}/endpoints/shop/{digest(model)}/model/manifest.json")


CRASH = {"exitCode": 1, "reason": "Error"}
FATES = {
    "pull": (
        Fate(waiting={"reason": "ImagePullBackOff", "message": "not found"}),
        "the image narrowcast:test of container kserve-container of pod .* cannot be pulled .not found.: bring it",
    ),
    "crash": (
        Fate(terminated=CRASH, restarts=2, log="loading\nerror: tables.safetensors is damaged: pack again\n"),
        "ends with status 1: tables.safetensors is damaged: pack again",
    ),
    "memory": (Fate(terminated={"exitCode": 137, "reason": "OOMKilled"}, restarts=2), "raise kserve.memory"),
    "secret": (
        Fate(waiting={"reason": "CreateContainerConfigError", "message": 'secret "narrowcast-redis" not found'}),
        'cannot be started: secret "narrowcast-redis" not found',
    ),
    "nodes": (
        Fate(unschedulable="0/3 nodes are available: 3 Insufficient cpu."),
        "0 of 1 pods were ready after 1 s: no node takes pod .*Insufficient cpu",
    ),
    "slow": (Fate(), "0 of 1 pods were ready after 1 s: see the events of the pods, or raise ready_seconds"),
}


@pytest.mark.parametrize(("name", "mode"), list(zip(FATES, ["Standard", "Knative"] * 3, strict=True)))
def test_a_model_that_does_not_come_up(name, mode, cluster, predictors, run, home, tiny_run, another_model):
    fate, sentence = FATES[name]
    predictors.fates[digest(another_model)] = fate
    assert run(tiny_run.packed_model, mode=mode)["deployed"]
    cluster.shares_requests = True
    kept = run(another_model, mode=mode, canary_percents=[10], ready_seconds=1)
    assert kept["deployed"] is False
    assert kept["kept_champion"] is True
    assert kept["model_md5"] == digest(tiny_run.packed_model)
    assert kept["reason"].startswith("the new model does not answer: ")
    assert re.search(sentence, kept["reason"]), kept["reason"]
    settled(cluster, home)
    assert not objects.exists(f"{home}/endpoints/shop/{digest(another_model)}")


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_first_model_that_does_not_come_up(mode, cluster, predictors, run, home, tiny_run):
    predictors.fates[digest(tiny_run.packed_model)] = FATES["crash"][0]
    result = run(tiny_run.packed_model, mode=mode)
    assert result["deployed"] is result["kept_champion"] is False
    assert result["url"] is None
    assert "tables.safetensors is damaged" in result["reason"]
    assert cluster.pods == [], "what never answered is stopped"
    assert not objects.exists(f"{home}/endpoints/shop.json")
    predictors.fates.clear()
    assert run(tiny_run.packed_model, mode=mode)["deployed"]
    settled(cluster, home)


@contextlib.contextmanager
def shifted(port: int, by: float):
    """A port that answers as the server on `port` does, with other probabilities."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = json.loads(upstream.getresponse().read())
            for output in answer["outputs"]:
                output["data"] = [value + by for value in output["data"]]
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_wrong_scores_get_no_request(mode, cluster, predictors, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model, mode=mode)["deployed"]
    md5 = digest(another_model)
    with shifted(predictors.ports[md5], 0.25) as port:
        predictors.fates[md5] = Fate(port=port)
        kept = run(another_model, mode=mode)
    assert kept["kept_champion"] is True
    assert "scores its sample request with" in kept["reason"]
    settled(cluster, home)
    champion = kserve_spec.revision(state(home)["predictor"])
    assert all(set(moment) == {champion} for moment in cluster.shares), "the champion answered every request"

    other = digest(tiny_run.packed_model)
    predictors.fates[md5] = Fate(port=predictors.ports[other])
    kept = run(another_model, mode=mode)
    assert f"answers with the model {other}, not with {md5}" in kept["reason"]
    settled(cluster, home)


def test_a_predictor_that_falls_over_its_share(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]
    cluster.shares_requests = True

    def crash(_: str) -> None:
        """The canary's pod is started again a while after it was given its share."""
        if [moment for moment in cluster.shares[-20:] if len(moment) == 2] == cluster.shares[-20:]:
            for pod in cluster.pods:
                pod.fate = Fate(port=pod.fate.port, restarts=int(pod.owner == "shop-canary-predictor"))

    cluster.before_answer = crash
    kept = run(another_model, canary_percents=[10], canary_seconds=3)
    assert "was started again while it served" in kept["reason"]
    settled(cluster, home)


def test_a_share_that_no_request_gets_is_told(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]
    with pytest.raises(NarrowcastError, match=r"leave kserve\.canary_percents empty, or use mode Knative"):
        run(another_model, canary_percents=[10])
    settled(cluster, home)


def status(code: int, reason: str, message: str) -> dict:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


def test_what_the_api_refuses(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]

    said = 'inferenceservices.serving.kserve.io "shop" is forbidden: User cannot patch resource'
    cluster.faults = [("PATCH", 403, status(403, "Forbidden", said))] * 2
    with pytest.raises(NarrowcastError, match=r"^cannot apply .*/shop: .* is forbidden.*narrowcast-deploy\)$"):
        run(another_model)
    settled(cluster, home)

    cluster.foreign = {"spec.predictor.minReplicas": ("kubectl-edit", 3)}
    with pytest.raises(NarrowcastError, match=r'conflict with "kubectl-edit": .spec.predictor.minReplicas; take that'):
        run(another_model)
    cluster.foreign = {}
    settled(cluster, home)

    with pytest.raises(NarrowcastError, match="denied the request: update rejected: deploymentMode cannot be changed"):
        run(another_model, mode="Knative")
    settled(cluster, home)

    cluster.faults = [("GET", 401, status(401, "Unauthorized", "Unauthorized"))]
    with pytest.raises(NarrowcastError, match="the API knows nobody by this pod's token"):
        run(another_model)

    cluster.faults = [("PATCH", 503, "down"), ("GET", 429, "too many"), ("GET", 500, "etcd")]
    assert run(another_model)["deployed"] is True, "what passes is waited for"
    settled(cluster, home)

    cluster.faults = [("GET", 503, status(503, "Unavailable", "etcd is away"))] * 3
    with pytest.raises(NarrowcastError, match="the API answered 503, etcd is away; run again when it is well"):
        run(tiny_run.packed_model)


def test_what_is_not_there(cluster, run, home, tiny_run, tmp_path, monkeypatch):
    cluster.installed = False
    with pytest.raises(NarrowcastError, match="has no such kind; install KServe first"):
        run(tiny_run.packed_model)
    cluster.installed = True
    with pytest.raises(NarrowcastError, match="there is no namespace 'elsewhere'; make it first"):
        run(tiny_run.packed_model, namespace="elsewhere")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(NarrowcastError, match="no Kubernetes API is known here"):
        run(tiny_run.packed_model)
    text = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "none").write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:1", text))
    with pytest.raises(NarrowcastError, match=r"the Kubernetes API at .* does not answer"):
        run(tiny_run.packed_model)


def test_an_outdated_verdict(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]
    kept = run(another_model, against="0" * 32)
    assert kept["kept_champion"] is True
    assert "was judged against 000" in kept["reason"]
    assert "run again" in kept["reason"]
    settled(cluster, home)


def test_somebody_elses_change_is_left_alone(cluster, run, home, tiny_run, another_model):
    assert run(tiny_run.packed_model)["deployed"]

    def change(method: str) -> None:
        if method == "GET" and "canary" in cluster.service["spec"]:
            cluster.service["spec"]["predictor"]["minReplicas"] = 1
            cluster.service["metadata"]["generation"] += 1
            cluster.before_answer = lambda _: None

    cluster.before_answer = change
    before = len(cluster.applied)
    with pytest.raises(NarrowcastError, match="was changed or deleted by somebody else"):
        run(another_model)
    assert len(cluster.applied) == before + 1


def test_an_inference_service_of_others(cluster, run, home, tiny_run):
    other = {"containers": [{"name": "kserve-container", "env": [{"name": "STORAGE_URI", "value": "s3://other"}]}]}
    metadata = {"name": "shop", "generation": 1, "annotations": {"serving.kserve.io/deploymentMode": "Standard"}}
    cluster.service = {"metadata": metadata, "spec": {"predictor": {**other, "labels": {kserve_spec.REVISION: "x"}}}}
    cluster._pass = lambda: None
    with pytest.raises(NarrowcastError, match=f"serves no model of {home}/endpoints/shop"):
        run(tiny_run.packed_model)
    metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(NarrowcastError, match="is being deleted"):
        run(tiny_run.packed_model)
    assert cluster.applied == []


@pytest.mark.parametrize(
    ("endpoint", "sentence"), [("Shop", "cannot name an endpoint"), ("a" * 41, "cannot name"), ("../x", "cannot name")]
)
def test_names_that_will_not_do(endpoint, sentence, cluster, run, tiny_run):
    with pytest.raises(NarrowcastError, match=sentence):
        run(tiny_run.packed_model, endpoint)


def test_no_endpoint_and_no_object_storage(cluster, run, tiny_run, tmp_path):
    assert "no endpoint was named" in run(tiny_run.packed_model, "")["reason"]
    with pytest.raises(NarrowcastError, match="where no predictor finds a model"):
        find_endpoint(str(tmp_path), "shop")


CANCELLED = """
import sys
from narrowcast.components.serve import kserve_rollout
from narrowcast.components.serve.kserve_deploy import deploy
kserve_rollout.POLL_SECONDS = 0.05
model, store, evaluation, home, target, mode = sys.argv[1:]
settings = {"mode": mode, "ready_seconds": 300, "image": "narrowcast:test"}
deploy(model, store, evaluation, "shop", home, target, kserve=settings)
"""


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_step_that_is_cancelled(mode, cluster, predictors, run, home, tiny_run, another_model, tmp_path):
    assert run(tiny_run.packed_model, mode=mode)["deployed"]
    champion = state(home)["predictor"]
    predictors.fates[digest(another_model)] = Fate()
    judged = {"passed": True, "gates": [], "champion_md5": digest(tiny_run.packed_model)}
    write_json(tmp_path / "judged" / "evaluation.json", judged)
    folders = another_model, tiny_run.feature_store, tmp_path / "judged", home, tmp_path / "cancelled"
    before = len(cluster.applied)
    step = subprocess.Popen([sys.executable, "-c", CANCELLED, *map(str, folders), mode])
    deadline = time.monotonic() + 60
    while len(cluster.applied) == before:
        assert step.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    step.terminate()
    assert step.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "cancelled").exists()
    pinned = {"canaryTrafficPercent": 0} if mode == "Knative" else {}
    assert cluster.service["spec"] == {"predictor": champion | pinned}
    assert "already serves" in run(tiny_run.packed_model, mode=mode)["reason"]
    settled(cluster, home)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("percent", [0, 50])
def test_what_a_killed_step_left(mode, percent, cluster, run, home, tiny_run, another_model):
    """The same model goes on where it was left; another run's leaves nothing behind."""
    assert run(tiny_run.packed_model, mode=mode)["deployed"]
    champion = state(home)["predictor"]
    cluster.shares_requests = True
    address = f"{home}/endpoints/shop/{digest(another_model)}"
    objects.put(another_model, f"{address}/model")
    objects.put(tiny_run.feature_store, f"{address}/store")
    left = kserve_spec.predictor(KServeSettings(mode=mode, cpu="2"), "tiny", address)
    kserve_api.Cluster("narrowcast", "shop").apply(kserve_spec.with_canary("shop", mode, champion, left, percent))
    for _ in range(3):
        cluster._pass()
    if percent:
        assert "already serves" in run(tiny_run.packed_model, mode=mode)["reason"]
    else:
        assert run(another_model, mode=mode)["deployed"]
    settled(cluster, home)
    assert versions(cluster) == {kserve_spec.revision(state(home)["predictor"])}
