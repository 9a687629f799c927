"""Steps by way of a RayJob on a real Ray of two machines, their files on a real S3 endpoint."""

import os
import subprocess
import sys

import pytest
from kfp import dsl
from ray.cluster_utils import Cluster
from ray_cluster import serving

from narrowcast import objects
from narrowcast.components.search.component import search
from narrowcast.components.train import ray_api
from narrowcast.components.train.component import train
from narrowcast.components.train.ray_defaults import DEFAULTS, OBJECT_STORE_BYTES
from narrowcast.records import RECORD, digest, read_json

COMMON = {
    "backbone": "deepfm",
    "model": {"hidden": [16], "dropout": 0.1},
    "width": 8,
    "inner_width": 0,
    "batch_size": 64,
    "learning_rate": 0.01,
    "seed": 0,
}
TRAINING = {**COMMON, "epochs": 6, "training": {"patience": 6}}
SEARCH = {**COMMON, "training": {}, "method": "mde", "budget": "1/3", "bits": 8, "num_trials": 1}
HERE = {"num_workers": 0, "ray": {}}

pytestmark = pytest.mark.slow


@pytest.fixture
def machines(s3, tmp_path, monkeypatch):
    """A head without room for workers and a machine with a core, each with temporary files of its own."""
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    size = {"object_store_memory": OBJECT_STORE_BYTES}
    folders = {name: tmp_path / name for name in ("head", "worker")}
    for folder in folders.values():
        folder.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**size, "num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(**size, num_cpus=1, env_vars={"TMPDIR": str(folders["worker"])})
        yield cluster, folders
    finally:
        cluster.shutdown()


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The Kubernetes API that the steps make their jobs at."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(ray_api, "LOOK_SECONDS", 1)
    with serving(tmp_path / "kubeconfig") as found:
        yield found


def program(job, address, folder):
    """A job's program as KubeRay starts it on the head."""
    python, *command = job["spec"]["entrypoint"].split()
    assert python == "python"
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "RAY_ADDRESS": address, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def operator(address, folder, *, kills=False):
    """KubeRay's part: the program is run, and with `kills` first killed after an epoch and then tried again."""

    def operate(api, name):
        if kills:
            api.say(name, "Running", "RUNNING")
            killed = program(api.jobs[name], address, folder)
            assert killed.stdout.readline().startswith("epoch 1/6")
            killed.kill()
            killed.communicate()
            api.say(name, "Retrying", "FAILED", reason="AppFailed")
        api.say(name, "Running", "RUNNING")
        done = program(api.jobs[name], address, folder)
        printed, _ = done.communicate()
        api.pod(name, f"{name}-submitter", "submitter", phase="Failed" if done.returncode else "Succeeded")
        api.log(f"{name}-submitter", *printed.splitlines())
        if done.returncode:
            api.say(name, "Failed", "FAILED", reason="AppFailed", message=f"exit code {done.returncode}")
        else:
            api.say(name, "Complete", "SUCCEEDED")

    return operate


def on_cluster(s3):
    return {"num_workers": 1, "ray": {"home": f"{s3}/home", "namespace": "runs", "retries": 1}}


def test_steps_on_a_cluster_give_what_they_give_here(api, machines, s3, tiny_encoded, tmp_path, capfd):
    cluster, folders = machines
    encoded = dsl.Dataset(name="encoded", uri=str(tiny_encoded))
    api.operator = operator(cluster.address, folders["head"], kills=True)
    there = dsl.Model(name="full_model", uri=str(tmp_path / "there"))
    train.python_func(encoded=encoded, full_model=there, **TRAINING, **on_cluster(s3))
    assert "test AUC" in capfd.readouterr().out
    assert (tmp_path / "there" / RECORD).exists()
    for folder in folders.values():  # each machine has fetched the data for itself
        assert list(folder.glob("narrowcast-copies/s3/*/home/jobs/*/inputs/encoded/layout.json"))
    api.operator = operator(cluster.address, folders["head"])
    found = dsl.Artifact(name="plan", uri=str(tmp_path / "found"))
    search.python_func(encoded=encoded, plan=found, **SEARCH, **on_cluster(s3))
    assert (api.jobs, len(api.created)) == ({}, 2)
    assert not [name for body in api.created if objects.exists(name := f"{s3}/home/jobs/{body['metadata']['name']}")]

    here = dsl.Model(name="full_model", uri=str(tmp_path / "here"))
    train.python_func(encoded=encoded, full_model=here, **TRAINING, **HERE)
    metrics = [read_json(tmp_path / name / "metrics.json") for name in ("there", "here")]
    assert metrics[0].pop("resumed_from_epoch") >= 1
    assert metrics[1].pop("resumed_from_epoch") is None
    assert metrics[0] == metrics[1]
    for name in ("model.safetensors", "plan.json", "model.json", "layout.json"):
        assert digest(tmp_path / "there" / name) == digest(tmp_path / "here" / name)
    plan = dsl.Artifact(name="plan", uri=str(tmp_path / "plan"))
    search.python_func(encoded=encoded, plan=plan, **SEARCH, **HERE)
    assert digest(tmp_path / "found") == digest(tmp_path / "plan")


def test_a_program_that_cannot_go_on_ends_the_step_with_its_sentence(api, s3, tiny_encoded, tmp_path, capfd):
    api.operator = operator("none", tmp_path)
    given = {**TRAINING, **on_cluster(s3)}
    encoded = dsl.Dataset(name="encoded", uri=str(tiny_encoded))
    model = dsl.Model(name="full_model", uri=str(tmp_path / "model"))
    with pytest.raises(SystemExit):
        train.python_func(encoded=encoded, full_model=model, **given)
    assert "error: cannot join the Ray cluster at RAY_ADDRESS=none" in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        train.python_func(encoded=dsl.Dataset(name="encoded", uri=str(tmp_path / "empty")), full_model=model, **given)
    assert "error: cannot read s3://narrowcast/home/jobs/" in capfd.readouterr().err
    assert api.jobs == {}


def test_a_step_refuses_bad_parameters_before_it_makes_a_job(api, s3, tiny_encoded, tmp_path, capfd):
    encoded = dsl.Dataset(name="encoded", uri=str(tiny_encoded))
    model = dsl.Model(name="full_model", uri=str(tmp_path / "model"))
    with pytest.raises(SystemExit):
        train.python_func(encoded=encoded, full_model=model, **{**TRAINING, "backbone": "deepfn"}, **on_cluster(s3))
    assert "did you mean 'deepfm'" in capfd.readouterr().err
    assert api.requests == []
