"""A step's program on a real Ray of two machines that share no disk, its files on a real S3 endpoint."""

import os
import subprocess
import sys

import pytest
import ray
from kfp import dsl
from ray.cluster_utils import Cluster

from narrowcast import objects
from narrowcast.components.search.component import search
from narrowcast.components.train.component import train
from narrowcast.components.train.ray_defaults import DEFAULTS, OBJECT_STORE_BYTES
from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.components.train.ray_task import hand_over, take_back, task_of
from narrowcast.records import RECORD, digest, read_json

COMMON = {
    "backbone": "deepfm",
    "model": {"hidden": [16], "dropout": 0.1},
    "width": 8,
    "inner_width": 0,
    "batch_size": 64,
    "learning_rate": 0.01,
    "num_workers": 2,
    "seed": 0,
    "ray": {},
}
TRAINING = {**COMMON, "epochs": 6, "training": {"patience": 6}}
SEARCH = {**COMMON, "training": {}, "method": "mde", "budget": "1/3", "bits": 8, "num_trials": 1}

pytestmark = pytest.mark.slow


@pytest.fixture
def machines(s3, tmp_path, monkeypatch):
    """A head without room for workers and a machine with two cores, each with temporary files of its own."""
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    size = {"object_store_memory": OBJECT_STORE_BYTES}
    folders = {name: tmp_path / name for name in ("head", "worker")}
    for folder in folders.values():
        folder.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**size, "num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(**size, num_cpus=2, env_vars={"TMPDIR": str(folders["worker"])})
        yield cluster, folders
    finally:
        ray.shutdown()
        cluster.shutdown()


def program(cluster_address, head, task):
    """The program as KubeRay starts it on the head."""
    return subprocess.Popen(
        [sys.executable, "-m", "narrowcast.components.train.ray_main", task.job_file],
        env={**os.environ, "RAY_ADDRESS": cluster_address, "TMPDIR": str(head)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def task(function, s3, output, tiny_encoded, target, **parameters):
    encoded = dsl.Dataset(name="encoded", uri=str(tiny_encoded))
    given = {**parameters, "encoded": encoded, output: dsl.Model(name=output, uri=str(target))}
    return task_of(function, given, [output], RaySettings(home=f"{s3}/home", namespace="runs"))


def test_steps_on_a_cluster_give_what_they_give_here(machines, s3, tiny_encoded, tmp_path):
    cluster, folders = machines
    training = task(
        "narrowcast.components.train.component:train", s3, "full_model", tiny_encoded, tmp_path / "there", **TRAINING
    )
    hand_over(training)
    killed = program(cluster.address, folders["head"], training)
    assert killed.stdout.readline().startswith("epoch 1/6")
    killed.kill()
    killed.communicate()
    done = program(cluster.address, folders["head"], training)  # as KubeRay tries again
    printed, errors = done.communicate()
    assert done.returncode == 0, errors
    assert "test AUC" in printed
    take_back(training)
    assert (tmp_path / "there" / RECORD).exists()
    for folder in folders.values():  # each machine has fetched the data for itself
        assert list(folder.glob("narrowcast-copies/s3/*/home/jobs/*/inputs/encoded/layout.json"))

    searching = task(
        "narrowcast.components.search.component:search", s3, "plan", tiny_encoded, tmp_path / "found", **SEARCH
    )
    hand_over(searching)
    done = program(cluster.address, folders["head"], searching)
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    take_back(searching)

    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    encoded = dsl.Dataset(name="encoded", uri=str(tiny_encoded))
    here = dsl.Model(name="full_model", uri=str(tmp_path / "here"))
    train.python_func(encoded=encoded, full_model=here, **TRAINING)
    metrics = [read_json(tmp_path / name / "metrics.json") for name in ("there", "here")]
    assert metrics[0].pop("resumed_from_epoch") >= 1
    assert metrics[1].pop("resumed_from_epoch") is None
    assert metrics[0] == metrics[1]
    for name in ("model.safetensors", "plan.json", "model.json", "layout.json"):
        assert digest(tmp_path / "there" / name) == digest(tmp_path / "here" / name)
    plan = dsl.Artifact(name="plan", uri=str(tmp_path / "plan"))
    search.python_func(encoded=encoded, plan=plan, **{**SEARCH, "num_workers": 0})
    assert digest(tmp_path / "found") == digest(tmp_path / "plan")


def test_a_program_that_cannot_go_on_ends_with_a_sentence(s3, tiny_encoded, tmp_path):
    refusing = task(
        "narrowcast.components.train.component:train",
        s3,
        "full_model",
        tiny_encoded,
        tmp_path / "there",
        **{**TRAINING, "backbone": "deepfn"},
    )
    hand_over(refusing)
    for said in ("did you mean 'deepfm'", "job.json: it does not exist"):
        done = program("none", tmp_path, refusing)
        _, errors = done.communicate()
        assert done.returncode == 1
        assert said in errors
        assert "Traceback" not in errors
        objects.delete(refusing.folder)
