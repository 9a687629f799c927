"""A step's RayJob against an API over HTTP, by Kubernetes' client: every end has its sentence and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import boto3
import pytest
from kfp import dsl
from ray_cluster import Fault, serving

from narrowcast import objects
from narrowcast.components.train import ray_api, ray_removal
from narrowcast.components.train.rayjob import run_step
from narrowcast.errors import NarrowcastError
from narrowcast.step import MARK

FUNCTION = "narrowcast.components.train.component:train"
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ],
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The API, as the environment names it."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(ray_api, "LOOK_SECONDS", 1)
    with serving(tmp_path / "kubeconfig") as found:
        yield found


@pytest.fixture
def given(tmp_path):
    """The arguments of a step: a folder, parameters, and where the output goes."""
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded" / "layout.json").write_text("{}")
    return {
        "encoded": dsl.Dataset(name="encoded", uri=str(tmp_path / "encoded")),
        "num_workers": 2,
        "training": {"patience": 3},
        "ray": {"never": "handed on"},
        "full_model": dsl.Model(name="full_model", uri=str(tmp_path / "model")),
    }


@pytest.fixture
def run(cluster, s3, given, monkeypatch):
    """Run the step; afterwards nothing may be left, neither on the cluster nor on object storage."""
    monkeypatch.setenv("NARROWCAST_JOB_NAME", "narrowcast-training-abcde")

    def call(**ray):
        settings = {"home": f"{s3}/home", "namespace": "runs", **ray}
        run_step(FUNCTION, given, outputs=["full_model"], ray=settings)

    yield call
    assert (cluster.jobs, cluster.pods) == ({}, {})
    assert files() == []


def files():
    """On object storage; the empty entries are those by which its client keeps folders."""
    found = boto3.client("s3").list_objects_v2(Bucket="narrowcast").get("Contents", [])
    return [entry["Key"] for entry in found if not entry["Key"].endswith("/")]


def job_file(cluster, name):
    """What the program's command names."""
    return objects.read_json(cluster.jobs[name]["spec"]["entrypoint"].split()[-1])


def succeed(cluster, name):
    """KubeRay's part of a job that goes well, the program's outputs included."""
    cluster.say(name, "Initializing")
    cluster.pod(name, f"{name}-head", "ray-head")
    cluster.pod(name, f"{name}-submitter", "submitter")
    cluster.log(f"{name}-submitter", "epoch 1/2", MARK + json.dumps({"step": "train", "seconds": 1, "error": None}))
    cluster.say(name, "Running", "RUNNING")
    objects.write_json(job_file(cluster, name)["outputs"]["full_model"] + "/model.json", {"trained": True})
    cluster.say(name, "Complete", "SUCCEEDED")


def failing(*states, error=None, **pods):
    """An operator under whom a job goes through states, each (deployment, program, reason, message), and then rests."""

    def operate(cluster, name):
        for key, (container, status) in pods.items():
            cluster.pod(name, f"{name}-{key}", container, **status)
        if error is not None:
            cluster.pod(name, f"{name}-submitter", "submitter")
            cluster.log(f"{name}-submitter", MARK + json.dumps({"step": "train", "seconds": 1, "error": error}))
        for state, program, reason, message in states:
            time.sleep(0.1)
            cluster.say(name, state, program, reason=reason, message=message)

    return operate


def test_a_job_that_succeeds_gives_its_outputs_and_prints_its_log(cluster, run, given, tmp_path, capsys):
    handed_over = []

    def operate(cluster, name):
        handed_over.append(job_file(cluster, name))
        assert objects.exists(handed_over[0]["inputs"]["encoded"] + "/layout.json")
        succeed(cluster, name)

    cluster.operator = operate
    run()
    assert json.loads((tmp_path / "model" / "model.json").read_text()) == {"trained": True}
    (job,) = handed_over
    assert job["function"] == FUNCTION
    assert job["parameters"] == {"num_workers": 2, "training": {"patience": 3}, "ray": {}}
    printed = capsys.readouterr().out
    assert printed.count("epoch 1/2") == 1
    assert MARK not in printed
    for state in ("is made in namespace runs", ": Initializing", ": Running", ": Complete"):
        assert state in printed
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]


def test_a_job_goes_with_the_pod_of_its_step(cluster, run, monkeypatch, tmp_path):
    (tmp_path / "namespace").write_text("runs")
    monkeypatch.setattr(ray_api, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    monkeypatch.setenv("KFP_POD_UID", "1234")
    cluster.operator = succeed
    run(namespace="")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "1234"}
    assert cluster.created[0]["metadata"]["ownerReferences"] == [owner]
    assert cluster.created[0]["metadata"]["namespace"] == "runs"


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (
            failing(("Failed", "FAILED", "AppFailed", "exit 1"), error="lower learning_rate (9)"),
            r"^lower learning_rate \(9\)$",
        ),
        (failing(("Failed", "FAILED", "AppFailed", "exit 1")), r"failed \(AppFailed: exit 1\): see the log above"),
        (
            failing(
                ("Running", "RUNNING", "", ""),
                ("Failed", "FAILED", "AppFailed", "exit 1"),
                error="training on Ray failed",
                worker=("ray-worker", {"containerStatuses": [{"lastState": {"terminated": {"reason": "OOMKilled"}}}]}),
            ),
            r"pod \S+-worker ran out of its 4Gi of memory \(OOMKilled\): raise ray.worker_memory "
            r"\(the step ended with: training on Ray failed\)",
        ),
        (
            failing(
                ("Failed", "", "AppFailed", ""),
                head=("ray-head", {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}),
            ),
            "raise ray.head_memory",
        ),
        (
            failing(
                ("Failed", "", "AppFailed", ""), worker=("ray-worker", {"reason": "Evicted", "message": "disk is full"})
            ),
            r"pod \S+-worker was taken off its node \(disk is full\)",
        ),
        (
            failing(("Running", "RUNNING", "", ""), ("Failed", "", "DeadlineExceeded", "late")),
            "took longer than its 86400 s: raise ray.active_deadline_seconds",
        ),
        (
            failing(("Failed", "", "SubmissionFailed", "BackoffLimitExceeded")),
            "was not handed in.*BackoffLimitExceeded",
        ),
        (
            failing(("ValidationFailed", "", "ValidationFailed", "name too long")),
            "KubeRay takes no such RayJob.*too long",
        ),
        (failing(("Suspended", "", "", "")), "was suspended by someone"),
        (failing(("Running", "RUNNING", "", ""), ("Complete", "STOPPED", "", "")), "was stopped by someone"),
        (lambda cluster, name: cluster.wait_for(name) and cluster.delete(name), "was deleted by someone while it ran"),
    ],
    ids=[
        "user",
        "unsaid",
        "worker",
        "head",
        "evicted",
        "deadline",
        "submission",
        "invalid",
        "suspended",
        "stopped",
        "deleted",
    ],
)
def test_every_end_has_its_sentence(cluster, run, operator, said, tmp_path):
    cluster.operator = operator
    with pytest.raises(NarrowcastError, match=said) as error:
        run()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("pod", "warning", "said"),
    [
        (
            UNSCHEDULABLE,
            None,
            r"3 Insufficient nvidia.com/gpu.\): lower num_workers \(2\), set ray.gpus_per_worker to 0",
        ),
        (
            {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            None,
            "image",
        ),
        (None, 'pods "head" is forbidden: exceeded quota: gpus', "raise the namespace's quota"),
        (None, None, "its pods are still starting"),
    ],
    ids=["gpu", "image", "quota", "slow"],
)
def test_a_job_that_finds_no_place_ends_with_advice(cluster, run, pod, warning, said, capsys):
    def operate(cluster, name):
        if pod:
            cluster.pod(name, f"{name}-worker", "ray-worker", **pod)
        cluster.warnings["the-cluster"] = [warning] if warning else []
        cluster.say(name, "Initializing", rayClusterName="the-cluster")

    cluster.operator = operate
    with pytest.raises(NarrowcastError, match=f"does not run after 1 s.*{said}"):
        run(pending_deadline_seconds=1)
    if pod is UNSCHEDULABLE:
        assert "finds no node: 0/3 nodes are available" in capsys.readouterr().out


def test_without_an_operator_the_sentence_says_so(cluster, run):
    with pytest.raises(NarrowcastError, match="KubeRay has not taken it up"):
        run(pending_deadline_seconds=1)


def test_what_an_earlier_try_has_left_is_replaced(cluster, run, given):
    cluster.operator = lambda cluster, name: None
    with pytest.raises(NarrowcastError, match="has not taken it up"):
        run(pending_deadline_seconds=1)
    left = cluster.created[0]
    cluster.create(left)
    cluster.pod(left["metadata"]["name"], "old-worker", "ray-worker")
    cluster.operator = succeed
    run()
    assert [body["metadata"]["name"] for body in cluster.created] == 3 * [left["metadata"]["name"]]


def test_a_job_of_the_same_name_that_is_anothers_is_left_alone(cluster, run, s3):
    with pytest.raises(NarrowcastError, match="has not taken it up"):
        run(pending_deadline_seconds=1)
    other = cluster.created[0]
    other["metadata"]["annotations"] = {}
    cluster.create(other)
    with pytest.raises(NarrowcastError, match=r"that this step has not made.*kubectl delete rayjob"):
        run()
    assert list(cluster.jobs) == [other["metadata"]["name"]]
    cluster.delete(other["metadata"]["name"])


def test_a_job_made_by_a_request_without_an_answer_is_followed(cluster, run, monkeypatch):
    create = cluster.create

    def create_unheard(body):
        cluster.faults.append(Fault("POST", "rayjobs", 409))
        create(body)
        raise ConnectionResetError

    monkeypatch.setattr(cluster, "create", create_unheard)
    cluster.operator = succeed
    run()
    assert len(cluster.created) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "said"),
    [
        (
            "POST",
            "rayjobs",
            403,
            'rayjobs.ray.io is forbidden: User "x" cannot create',
            "may not create rayjobs.ray.io in",
        ),
        ("GET", "rayjobs/", 403, 'User "x" cannot get', "may not get rayjobs.ray.io.*role narrowcast-launch"),
        ("GET", "watch=True", 403, 'User "x" cannot watch', "may not watch rayjobs.ray.io"),
        ("GET", "/pods", 403, 'User "x" cannot list', "may not list pods in namespace 'runs'"),
        ("POST", "rayjobs", 403, "exceeded quota: count/rayjobs", "the quota of namespace 'runs' is used up"),
        ("POST", "rayjobs", 404, "404 page not found", "install KubeRay"),
        ("POST", "rayjobs", 404, 'namespaces "runs" not found', 'namespaces "runs" not found: make it'),
        ("POST", "rayjobs", 401, "Unauthorized", "renew the account's token"),
        ("POST", "rayjobs", 422, "spec.entrypoint: required", r"refused to create.*\(422: spec.entrypoint"),
    ],
    ids=["create", "get", "watch", "pods", "quota", "crd", "namespace", "token", "invalid"],
)
def test_a_refusal_of_the_api_has_its_sentence(cluster, run, method, path, status, message, said):
    cluster.faults.append(Fault(method, path, status, message))
    with pytest.raises(NarrowcastError, match=said):
        run()


@pytest.mark.parametrize(
    "faults",
    [
        [("POST", "rayjobs", 500), ("POST", "rayjobs", 429), ("POST", "rayjobs", 0)],
        [("GET", "watch=True", 0), ("GET", "watch=True", 503), ("GET", "rayjobs/", 504)],
        [("GET", "/pods", 500), ("GET", "/log", 500), ("GET", "/log", 0), ("DELETE", "rayjobs", 503)],
    ],
    ids=["create", "watch", "pods"],
)
def test_what_passes_by_itself_is_tried_again(cluster, run, faults):
    cluster.faults += [Fault(*fault) for fault in faults]

    def operate(cluster, name):
        deadline = time.monotonic() + 30
        while any(fault.times for fault in cluster.faults if "watch" in fault.path) and time.monotonic() < deadline:
            time.sleep(0.05)
        succeed(cluster, name)

    cluster.operator = operate
    run()
    assert len(cluster.created) == 1
    assert not any(fault.times for fault in cluster.faults)


def test_a_watch_that_has_expired_starts_anew(cluster, run):
    def operate(cluster, name):
        cluster.wait_for(name)
        with cluster.changes:  # both at once, so that the watcher's version is too old by then
            cluster.oldest = cluster.version + 2
            cluster.say(name, "Initializing")
        time.sleep(0.3)
        cluster.oldest = 0
        succeed(cluster, name)

    cluster.operator = operate
    run()


def test_a_watch_without_news_ends_and_starts_again(cluster, run):
    def operate(cluster, name):
        time.sleep(2.5)
        succeed(cluster, name)

    cluster.operator = operate
    run()
    assert sum("watch=True" in path for _, path in cluster.requests) >= 3


def test_an_api_that_never_answers_is_given_up(cluster, run, given, s3, monkeypatch):
    monkeypatch.setattr(ray_removal, "REMOVAL_SECONDS", 1)
    monkeypatch.setattr(ray_api.RayJobs.__init__, "__defaults__", (1,))
    cluster.faults.append(Fault("GET", "rayjobs/", 0, times=1000))
    with pytest.raises(NarrowcastError, match=r"the Kubernetes API does not answer \(get in namespace 'runs'"):
        run()


def test_retries_go_on_and_print(cluster, run, capsys):
    def operate(cluster, name):
        cluster.say(name, "Running", "RUNNING")
        cluster.pod(name, "first", "submitter", phase="Failed")
        cluster.log("first", MARK + json.dumps({"step": "train", "seconds": 1, "error": "lost"}))
        time.sleep(0.3)
        cluster.say(name, "Retrying", "FAILED", reason="AppFailed")
        time.sleep(0.3)
        succeed(cluster, name)

    cluster.operator = operate
    run(retries=1)
    assert cluster.created[0]["spec"]["backoffLimit"] == 1
    assert ": Retrying" in capsys.readouterr().out


def test_what_an_earlier_try_said_is_not_why_the_last_one_failed(cluster, run):
    def operate(cluster, name):
        cluster.pod(name, "first", "submitter", phase="Failed")
        cluster.log("first", MARK + json.dumps({"step": "train", "seconds": 1, "error": "lower learning_rate"}))
        time.sleep(0.3)
        cluster.say(name, "Retrying", "FAILED", reason="AppFailed")
        cluster.pod(name, "second", "submitter", phase="Failed")
        cluster.log("second", "nothing to be told")
        time.sleep(0.3)
        cluster.say(name, "Failed", "", reason="SubmissionFailed", message="no answer")

    cluster.operator = operate
    with pytest.raises(NarrowcastError, match="was not handed in or its log was lost"):
        run(retries=1)


def test_workers_are_demanded(run, given):
    given["num_workers"] = 0
    with pytest.raises(NarrowcastError, match="num_workers is 0: on a Ray cluster"):
        run()


def test_no_api_is_one_sentence(run, monkeypatch, tmp_path):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(NarrowcastError, match="no Kubernetes API is known here"):
        run()


def test_a_namespace_is_demanded_out_of_a_pod(run):
    with pytest.raises(NarrowcastError, match="namespace is empty"):
        run(namespace="")


PROGRAM = """
import signal
import sys
from kfp import dsl
from narrowcast.components.train.rayjob import run_step
from narrowcast.step import step

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
encoded, model, home = sys.argv[1:]
given = {
    "encoded": dsl.Dataset(name="encoded", uri=encoded),
    "num_workers": 1,
    "full_model": dsl.Model(name="full_model", uri=model),
}
with step("train"):
    run_step(
        "narrowcast.components.train.component:train",
        given,
        outputs=["full_model"],
        ray={"home": home, "namespace": "runs"},
    )
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_told_to_stop_removes_its_job(cluster, s3, given, tmp_path, number):
    running = threading.Event()

    def operate(cluster, name):
        cluster.pod(name, f"{name}-worker", "ray-worker")
        cluster.say(name, "Running", "RUNNING")
        cluster.wait_for(name)
        running.set()

    cluster.operator = operate
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, given["encoded"].path, str(tmp_path / "model"), f"{s3}/home"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )
    try:
        assert running.wait(120)
        assert files() != []
        before = len(cluster.requests)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert (cluster.jobs, cluster.pods, files()) == ({}, {}, [])
    assert len(cluster.deleted) == 1
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "error: the step was told to stop: RayJob" in printed
        (name,) = {job["metadata"]["name"] for job in cluster.created}
        first = next(method for method, path in cluster.requests[before:] if path.split("?")[0].endswith(name))
        assert first == "DELETE", "there is a second for it"
