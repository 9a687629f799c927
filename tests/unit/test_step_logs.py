"""`narrowcast logs` against a server of KFP's API and one of Kubernetes' pods."""

import json
import re
import socket
import sys
import threading
import urllib.parse
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from kfp_api import UNSET, KFPServer
from kfp_server_api import V2beta1Run
from kubernetes.client import ApiClient, models

from narrowcast.pipelines import cli, cluster_runs

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = models.V1ContainerState(running=models.V1ContainerStateRunning(started_at=NEW_YEAR))
ENDED = models.V1ContainerState(terminated=models.V1ContainerStateTerminated(exit_code=0))
WAITING = models.V1ContainerState(waiting=models.V1ContainerStateWaiting(reason="PodInitializing"))


class Cluster:
    """Kubernetes' API for the pods of namespace kubeflow. `said`: what each pod's container `main` prints, in parts."""

    def __init__(self):
        self.pods, self.said, self.refusal, self.read = [], {}, None, []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, run_id, node, said=(), *, state=ENDED):
        """A pod as Argo makes it for a node of the workflow `wf`."""
        name = "wf-" + re.sub(r"\W", "-", node)
        statuses = [
            models.V1ContainerStatus(name=c, state=state, image="i", image_id="i", ready=True, restart_count=0)
            for c in ("wait", "main")
        ]
        pod = models.V1Pod(
            metadata=models.V1ObjectMeta(
                name=name,
                labels={"pipeline/runid": run_id},
                annotations={"workflows.argoproj.io/node-name": f"wf.root.{node}"},
                creation_timestamp=NEW_YEAR + timedelta(minutes=len(self.pods)),
            ),
            status=models.V1PodStatus(container_statuses=statuses),
        )
        self.pods.insert(0, pod)
        self.said[name] = said
        return name


def handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            address = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(address.query))
            log = re.fullmatch(r"/api/v1/namespaces/kubeflow/pods/([^/]+)/log", address.path)
            if cluster.refusal:
                self.answer(cluster.refusal, b"{}")
            elif log:
                cluster.read.append((log[1], query["container"], query.get("follow", "False")))
                self.answer(200, *(part.encode() for part in cluster.said[log[1]]))
            elif address.path == "/api/v1/namespaces/kubeflow/pods":
                label, _, value = query["labelSelector"].partition("=")
                found = models.V1PodList(items=[pod for pod in cluster.pods if pod.metadata.labels[label] == value])
                self.answer(200, json.dumps(ApiClient().sanitize_for_serialization(found)).encode())
            else:
                self.answer(404, b"{}")

        def answer(self, status, *parts):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (*parts, b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    made = Cluster()
    kubeconfig(tmp_path, monkeypatch, made.url)
    yield made
    made.http.shutdown()
    made.http.server_close()


def kubeconfig(folder, monkeypatch, url):
    config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    for module in ("kubernetes.config", "kubernetes.config.kube_config"):
        monkeypatch.setattr(f"{module}.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))


@pytest.fixture
def api():
    with KFPServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture
def run_id(api):
    """A run whose step `checkout` is done and whose step `train` goes on for two polls."""
    tasks = {"checkout": {}, "train": {"dependentTasks": ["checkout"]}, "report": {"dependentTasks": ["train"]}}
    run = V2beta1Run(display_name="a run", pipeline_spec={"root": {"dag": {"tasks": tasks}}})
    made = api.keep(api.runs, "run_id", run, state="RUNNING", finished_at=UNSET)
    going = ("RUNNING", {"checkout": "SUCCEEDED", "train": "RUNNING"})
    api.courses[made.run_id] = [going, going, ("RUNNING", {"checkout": "SUCCEEDED", "train": "SUCCEEDED"})]
    return made.run_id


@pytest.fixture
def logs(api, tmp_path, monkeypatch, capsys):
    """The command: its exit status, what it prints and what it says."""
    (tmp_path / "params.yaml").write_text("schema: ml_100k\ndata_version: abc\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster_runs, "POLL_SECONDS", 0.02)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["narrowcast", "logs", *arguments, "--host", api.url])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_the_logs_of_a_run_are_those_of_its_steps_in_their_order(logs, cluster, run_id):
    cluster.add("another run", "checkout.executor", ["not this\n"])
    cluster.add(run_id, "checkout-driver", ["not this\n"])
    cluster.add(run_id, "checkout.executor", ["fetched ", "raw\nda", "ta"])
    cluster.add(run_id, "train.executor", ["epoch 1\n", "épo", "ch 2\n"])
    cluster.add(run_id, "report.executor", state=WAITING)
    assert logs(run_id) == (
        0,
        "checkout | fetched raw\ncheckout | data\ntrain | epoch 1\ntrain | époch 2\n",
        "step checkout, pod wf-checkout-executor\nstep train, pod wf-train-executor\n",
    )
    assert {container for _, container, _ in cluster.read} == {"main"}


def test_one_steps_log_with_every_try(logs, cluster, run_id):
    cluster.add(run_id, "train-driver", ["driving\n"])
    cluster.add(run_id, "train.executor(0)", ["out of memory\n"])
    cluster.add(run_id, "train.executor(1)", ["epoch 1\n"])
    status, out, err = logs(run_id, "train")
    assert (status, out) == (0, "out of memory\nepoch 1\n")
    assert [line.split()[-1] for line in err.splitlines()] == ["wf-train-executor-0-", "wf-train-executor-1-"]


def test_every_part_of_a_nodes_name_may_have_a_tries_number(logs, cluster, run_id):
    cluster.add(run_id, "train-driver(0)", ["driving\n"])
    cluster.add(run_id, "train(0).executor(0)", ["epoch 1\n"])
    cluster.add(run_id, "report-driver(0)", ["no such secret\n"])
    assert logs(run_id, "train")[1] == "epoch 1\n"
    assert logs(run_id, "report")[1] == "no such secret\n"


def test_a_step_that_never_ran_has_its_drivers_log(logs, cluster, run_id):
    cluster.add(run_id, "train-driver", ["no such secret\n"])
    assert logs(run_id, "train")[1] == "no such secret\n"
    assert logs(run_id, "train", "--follow")[1] == "no such secret\n"


def test_following_goes_on_with_the_next_try_until_the_step_has_ended(logs, cluster, run_id, monkeypatch):
    cluster.add(run_id, "train.executor(0)", ["epoch 1\n"], state=RUNNING)
    get = cluster_runs.get_run

    def next_try(*arguments):
        if len(cluster.pods) == 1:
            cluster.add(run_id, "train.executor(1)", ["epoch 1\n", "epoch 2\n"], state=RUNNING)
        return get(*arguments)

    first = iter([get])
    monkeypatch.setattr(cluster_runs, "get_run", lambda *a: next(first, next_try)(*a))
    status, out, _ = logs(run_id, "train", "--follow")
    assert (status, out) == (0, "epoch 1\nepoch 1\nepoch 2\n")
    assert [(name[-2], follow) for name, _, follow in cluster.read] == [("0", "True"), ("1", "True")]


def test_what_has_no_log(logs, cluster, run_id):
    assert f"no pod of run {run_id} in namespace kubeflow has a log" in logs(run_id)[2]
    cluster.add(run_id, "train.executor", state=WAITING)
    assert f"no pod of step 'train' of run {run_id}" in logs(run_id, "train")[2]
    assert "has no step 'trian'; did you mean 'train'?" in logs(run_id, "trian")[2]
    assert "no run 'nothing'" in logs("nothing")[2]


@pytest.mark.parametrize(("status", "mend"), [(401, "log in"), (403, "pods/log"), (500, "look at the cluster")])
def test_what_kubernetes_refuses_is_one_sentence(logs, cluster, run_id, status, mend):
    cluster.refusal = status
    code, out, err = logs(run_id)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"error: listing the pods of run .* Kubernetes answers {status} .*{mend}.*\n", err)


def test_no_kubernetes_to_ask(logs, run_id, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kubeconfig(tmp_path, monkeypatch, f"http://127.0.0.1:{port}")
    code, _, err = logs(run_id)
    assert code == 1
    assert re.fullmatch(r"error: .*Kubernetes cannot be reached \(.*Connection refused\); check kubeconfig\n", err)
    (tmp_path / "kubeconfig").unlink()
    code, _, err = logs(run_id)
    assert code == 1
    assert re.fullmatch(r"error: no Kubernetes API is known here .*set KUBECONFIG\n", err)
