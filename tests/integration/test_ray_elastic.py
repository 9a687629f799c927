"""A machine that goes for good in the middle of a training on a real Ray of two: the other one ends it alone."""

import json
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.ray_defaults import DEFAULTS, OBJECT_STORE_BYTES
from narrowcast.components.train.run import train_full

CONFIG = TrainConfig(
    epochs=12,
    batch_size=64,
    learning_rate=0.01,
    model=ModelConfig(hidden=(16,)),
    patience=12,
    num_workers=2,
    min_workers=1,
)
QUICK = {
    **DEFAULTS,
    # Ray may first ask for two workers again, on what it knew of the machines before one went.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    """This process's Ray, of two machines with a core each."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    size = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    machines = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        machines.add_node(**size)
        ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()


def remove_second_machine(cluster: Cluster, storage: Path, epoch: int) -> None:
    """As soon as `storage` holds a checkpoint of at least `epoch`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in storage.glob("narrowcast-train-*/run/checkpoint_*/state.json"):
            try:
                reached = len(json.loads(path.read_text())["curves"])
            except (OSError, json.JSONDecodeError):
                continue
            if reached >= epoch:
                (second,) = cluster.worker_nodes
                cluster.remove_node(second, allow_graceful=False)
                return
        time.sleep(0.02)


def test_a_training_ends_on_the_machine_that_is_left(cluster, tiny_encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remover = threading.Thread(target=remove_second_machine, args=(cluster, tmp_path, 2), daemon=True)
    remover.start()
    train_full(tiny_encoded, CONFIG, tmp_path / "model", width=8, inner_width=0)
    remover.join()
    assert not cluster.worker_nodes
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert 1 <= metrics["resumed_from_epoch"] < CONFIG.epochs
    assert [entry["epoch"] for entry in metrics["curves"]] == list(range(1, CONFIG.epochs + 1))
    assert metrics["test"]["auc"] > 0.65
