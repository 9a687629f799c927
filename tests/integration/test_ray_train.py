"""Training on a real Ray of two workers: repeatable, and undisturbed by a killed worker."""

import json
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train import ray_train
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.forms import Codebook
from narrowcast.components.train.metrics import logloss
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.ray_session import ray_session
from narrowcast.components.train.run import train_from_plan, train_full
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest

CONFIG = TrainConfig(
    epochs=12,
    batch_size=64,
    learning_rate=0.01,
    model=ModelConfig(hidden=(16,), dropout=0.1),
    patience=12,
    num_workers=2,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session():
    """One Ray for all trainings here: starting it is most of a small training's time."""
    with ray_session(2):
        yield


@pytest.fixture(scope="module")
def undisturbed(session, tiny_encoded, tmp_path_factory):
    target = tmp_path_factory.mktemp("ray") / "model"
    train_full(tiny_encoded, CONFIG, target, width=8, inner_width=0)
    return target


class WorkerKiller(threading.Thread):
    """Kills one training worker as soon as `storage` holds a checkpoint of at least `epoch`."""

    def __init__(self, storage: Path, epoch: int) -> None:
        super().__init__(daemon=True)
        self.storage, self.epoch, self.killed_pid = storage, epoch, None

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(self.epoch <= epoch for epoch in self.committed_epochs()):
                worker = next(p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name())
                self.killed_pid = worker.pid
                os.kill(worker.pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    def committed_epochs(self):
        for path in self.storage.glob("narrowcast-train-*/run/checkpoint_*/state.json"):
            try:
                yield len(json.loads(path.read_text())["curves"])
            except (OSError, json.JSONDecodeError):
                continue


def test_a_killed_worker_changes_no_bit(undisturbed, tiny_encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killer = WorkerKiller(tmp_path, epoch=2)
    killer.start()
    train_full(tiny_encoded, CONFIG, tmp_path / "model", width=8, inner_width=0)
    killer.join()
    assert killer.killed_pid is not None
    assert not psutil.pid_exists(killer.killed_pid)
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["resumed_from_epoch"] >= 1
    assert len(metrics["curves"]) == CONFIG.epochs
    expected = json.loads((undisturbed / "metrics.json").read_text())
    assert metrics == {**expected, "resumed_from_epoch": metrics["resumed_from_epoch"]}
    assert digest(tmp_path / "model" / "model.safetensors") == digest(undisturbed / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_two_workers_repeat_to_the_bit_and_print_their_epochs(undisturbed, tiny_encoded, tmp_path, capfd):
    train_full(tiny_encoded, CONFIG, tmp_path / "model", width=8, inner_width=0)
    assert digest(tmp_path / "model") == digest(undisturbed)
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [f"epoch {n}/12" for n in range(1, 13)]
    assert "test AUC" in lines[-1]


def test_two_workers_compute_what_one_process_does(undisturbed, tiny_encoded, tmp_path):
    config = replace(CONFIG, model=replace(CONFIG.model, dropout=0.0), epochs=2)
    train_full(tiny_encoded, config, tmp_path / "two", width=8, inner_width=0)
    train_full(tiny_encoded, replace(config, num_workers=0), tmp_path / "none", width=8, inner_width=0)
    one, two = load_checkpoint(tmp_path / "none").state_dict(), load_checkpoint(tmp_path / "two").state_dict()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-2, atol=1e-4)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["resumed_from_epoch"] is None
    assert json.loads((undisturbed / "metrics.json").read_text())["test"]["auc"] > 0.65


def test_two_workers_train_aware_of_rounding(session, tiny_encoded, tmp_path):
    data = EncodedData(tiny_encoded)
    columns = tuple(range(8))

    def retrained(form: Codebook | None, bits: int, name: str) -> CTRModel:
        blocks = {table: Block(start=0, stop=n, columns=columns) for table, n in data.layout.table_rows.items()}
        blocks["item_id"] = replace(blocks["item_id"], bits=bits, form=form)
        tables = {table: TablePlan(rows=block.stop, blocks=(block,)) for table, block in blocks.items()}
        Plan(width=8, tables=tables).save(tmp_path / name / "plan" / "plan.json")
        config = replace(CONFIG, epochs=2, quantisation_aware=True)
        train_from_plan(tiny_encoded, tmp_path / name / "plan", config, tmp_path / name / "model")
        return load_checkpoint(tmp_path / name / "model")

    model, test = retrained(None, 2, "bits"), data.split("test")
    written = json.loads((tmp_path / "bits" / "model" / "metrics.json").read_text())["test"]["logloss"]
    assert logloss(test.label_B, predict(model, test)) == pytest.approx(written, abs=1e-9)
    model.embedding.round_rows(False)
    assert logloss(test.label_B, predict(model, test)) != pytest.approx(written, abs=1e-9)
    with pytest.raises(NarrowcastError, match="'item_id' has a codebook"):
        retrained(Codebook(groups=2, centroids=4), 16, "codebook")


def test_a_loss_that_is_no_number_is_refused_at_once(session, tiny_encoded, tmp_path):
    with pytest.raises(NarrowcastError, match="lower learning_rate"):
        train_full(tiny_encoded, replace(CONFIG, learning_rate=1e30), tmp_path / "model", width=8, inner_width=0)
    assert not (tmp_path / "model").exists()


def test_workers_that_keep_dying_are_a_sentence(session, tiny_encoded, tmp_path, monkeypatch):
    """Here they die for want of the arrays."""
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 0)
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    (hollow / "layout.json").write_text((tiny_encoded / "layout.json").read_text())
    with pytest.raises(NarrowcastError, match=r"training on Ray failed.*ids\.npy"):
        train_full(hollow, CONFIG, tmp_path / "model", width=8, inner_width=0)
    assert not (tmp_path / "model").exists()
