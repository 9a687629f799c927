"""Tables sharded by TorchRec over two real processes train as whole tables in one.

This file is the workers' program, too: `python test_torchrec.py RANK FOLDER`.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from narrowcast.components.data.encoded import PAD, Batch, EncodedData, Layout
from narrowcast.components.train.checkpoint import load_checkpoint, save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fresh_state
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.components.train.run import train_from_plan, train_full
from narrowcast.components.train.workers import ALONE, Workers
from narrowcast.errors import NarrowcastError

INSTALLED = importlib.util.find_spec("torchrec") is not None
needs_torchrec = pytest.mark.skipif(not INSTALLED, reason="torchrec is not installed (make setup-torchrec)")

SIZE = 2
WIDTH = 4
STEPS = 6
RATE = 0.05
WEIGHT_DECAY = 0.01
LAYOUT = Layout(
    categorical=("user", "item", "shop"),
    numeric=("age",),
    sequences=("tags", "history"),
    table_of={"user": "user", "item": "item", "shop": "shop", "tags": "tags", "history": "item"},
    table_rows={"user": 53, "item": 31, "shop": 2, "tags": 7},
)
PLAN = Plan(  # of the users, only the first 40 have rows
    width=WIDTH,
    tables={
        **full_plan(LAYOUT.table_rows, WIDTH).tables,
        "user": TablePlan(rows=53, blocks=(Block(start=0, stop=40, columns=(0, 1, 2, 3)),)),
    },
)
CONFIG = ModelConfig(hidden=(8,), history="din")
TRAINING = TrainConfig(
    model=CONFIG,
    seed=3,
    table_optimiser="rowwise_adagrad",
    learning_rate=RATE,
    weight_decay=WEIGHT_DECAY,
    num_workers=SIZE,
    tables="torchrec",
)
CASES = {
    "row-wise": {"row_wise_from": 1, "stop_at": 0},
    "table-wise": {"row_wise_from": 1000, "stop_at": 0},
    "both, resumed": {"row_wise_from": 20, "stop_at": 2},
}


def batches():
    """Every batch has padding; the last one has one row, so that a worker is left without any."""
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        rows = 1 if step == STEPS - 1 else 33
        ids_BF = np.stack([rng.integers(0, LAYOUT.table_rows[name], rows) for name in LAYOUT.categorical], 1)
        sequences = {}
        for name in LAYOUT.sequences:
            ids_BL = rng.integers(0, LAYOUT.table_rows[LAYOUT.table_of[name]], (rows, 5))
            lengths_B = rng.integers(0, 5, rows)
            lengths_B[0] = 2
            sequences[name] = np.where(np.arange(5) < lengths_B[:, None], ids_BL, PAD).astype(np.int32)
        dense_BN = rng.normal(size=(rows, 1)).astype(np.float32)
        batch = Batch(ids_BF=ids_BF.astype(np.int32), dense_BN=dense_BN, sequences=sequences)
        yield batch, rng.integers(0, 2, rows).astype(np.float32)


def parts_of(state):
    """The optimiser of a model's tables, and that of the rest."""
    return state.optimisers.tables, state.optimisers.dense


def train(model, steps, start, optimisers, workers=ALONE):
    """Steps `start` and on, at half the rate from the fourth."""
    for number in range(start, len(steps)):
        batch, label_B = steps[number]
        share = slice(workers.rank, None, workers.size)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = RATE if number < 3 else RATE / 2
            optimiser.zero_grad()
        logit_B = model(*to_tensors(batch.take(share)))
        target_B = torch.tensor(label_B[share])
        loss = nn.functional.binary_cross_entropy_with_logits(logit_B, target_B, reduction="sum") / len(batch)
        loss.backward()
        if workers.size > 1:
            workers.sum_gradients(list(model.parameters()))
        for optimiser in optimisers:
            optimiser.step()


def work(rank, folder):
    """One of the two workers: every case in a folder of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    for name, case in CASES.items():
        (folder / name).mkdir(exist_ok=True)
        work_on(folder / name, Workers(rank=rank, size=SIZE), **case)
    dist.destroy_process_group()


def work_on(folder, workers, *, row_wise_from, stop_at):
    """With `stop_at` it goes on after that step as a new model, from what an ordinary training saved."""
    from narrowcast.components.train.torchrec_state import gathered_state, load_shards, sharded_state

    def fresh():
        return sharded_state(LAYOUT, PLAN, TRAINING, row_wise_from=row_wise_from)

    steps = list(batches())
    state = fresh()
    if stop_at:
        train(state.model, steps[:stop_at], 0, parts_of(state), workers)
        state.end_epoch(validation_auc=0.5)
        train(state.model, steps[: stop_at + 1], stop_at, parts_of(state), workers)  # lest the best be the last
        state.end_epoch(validation_auc=0.4)
        whole = gathered_state(state, TRAINING)
        if whole:
            whole.save(folder)
        dist.barrier()
        before, state = state, fresh()
        load_shards(state, folder)
        assert state.curves == before.curves
        for loaded, saved in (
            (state.model.state_dict(), before.model.state_dict()),
            (state.best_values, before.best_values),
            (state.optimisers.tensors(), before.optimisers.tensors()),
        ):
            torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    model, optimisers = state.model, parts_of(state)
    stop_at += bool(stop_at)
    train(model, steps, stop_at, optimisers, workers)
    whole = model.gathered()
    with torch.no_grad():
        logit_B = model(*to_tensors(steps[0][0]))
    rows = {name.removeprefix("shard_"): len(v) for name, v in model.named_buffers() if name.startswith("shard_")}
    (folder / f"rows{workers.rank}.json").write_text(json.dumps(rows))
    if workers.rank == 0:
        save_checkpoint(folder / "model", whole)
        torch.save(logit_B, folder / "logits.pt")
    else:
        assert whole is None


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder a case, written by two workers."""
    folder = tmp_path_factory.mktemp("torchrec")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": str(SIZE), "LOCAL_WORLD_SIZE": str(SIZE)}
    logs = [folder / f"{rank}.log" for rank in range(SIZE)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * SIZE, "\n".join(log.read_text()[-3000:] for log in logs)
    return folder


@pytest.fixture(scope="module")
def trained():
    """Whole tables in one process, after the same steps."""
    state = fresh_state(CTRModel(LAYOUT, PLAN, CONFIG, TRAINING.seed), TRAINING)
    train(state.model, list(batches()), 0, parts_of(state))
    return state.model


@needs_torchrec
@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_whole_tables_and_end_in_an_ordinary_checkpoint(case, sharded, trained):
    found = load_checkpoint(sharded / case / "model")
    values, initial = trained.state_dict(), CTRModel(LAYOUT, PLAN, CONFIG, 3)
    assert found.state_dict().keys() == values.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, table in trained.embedding.tables.items():
        assert (table.weight_Rk - initial.embedding.tables[name].weight_Rk).abs().max() > 100 * 1e-5
    batch, _ = next(batches())
    with torch.no_grad():
        torch.testing.assert_close(
            torch.load(sharded / case / "logits.pt"), found(*to_tensors(batch)), rtol=0, atol=1e-5
        )


@needs_torchrec
@pytest.mark.parametrize("case", CASES)
def test_every_row_lies_on_one_worker(case, sharded):
    shards = [json.loads((sharded / case / f"rows{rank}.json").read_text()) for rank in range(SIZE)]
    for name in LAYOUT.table_rows:
        rows = PLAN.table(name).kept_rows
        parts = [shard[name] for shard in shards if shard.get(name)]
        assert sum(parts) == rows
        if rows >= CASES[case]["row_wise_from"]:
            assert max(parts) == -(-rows // SIZE)
        else:
            assert parts == [rows]
    assert all(shards)


@needs_torchrec
@pytest.mark.parametrize(
    "table",
    [
        TablePlan(rows=53, blocks=(Block(start=0, stop=53, columns=(0, 1, 2, 3)),), inner_width=8),
        TablePlan(rows=53, blocks=(Block(start=0, stop=53, columns=(0, 2)),)),
        TablePlan(rows=53, blocks=(Block(start=0, stop=53, columns=(0, 1)),), projection=2),
    ],
)
def test_tables_that_are_not_plain_are_refused(table):
    from narrowcast.components.train.torchrec_tables import ShardedModel

    plan = Plan(width=WIDTH, tables={**PLAN.tables, "user": table})
    with pytest.raises(NarrowcastError, match="table 'user' of the plan has"):
        ShardedModel(LAYOUT, plan, CONFIG, 0, learning_rate=RATE)


@needs_torchrec
@pytest.mark.slow
def test_ray_trains_sharded_tables_as_whole_ones(tiny_encoded):
    """Without decay: padding reads row 0 of a whole table alone, and what is read decays."""
    from narrowcast.components.train.ray_session import ray_session
    from narrowcast.components.train.ray_train import ray_fit

    data = EncodedData(tiny_encoded)
    plan = full_plan(data.layout.table_rows, WIDTH)
    model = ModelConfig(backbone="adrec", hidden=(16,), settings={"mask": "learned", "mask_penalty": 0.1})
    config = replace(TRAINING, model=model, epochs=3, patience=3, batch_size=128, weight_decay=0.0, learning_rate=0.01)
    with ray_session(SIZE):
        local, sharded = (ray_fit(data, plan, replace(config, tables=tables)) for tables in ("local", "torchrec"))
    assert [sorted(entry) for entry in sharded.curves] == [sorted(entry) for entry in local.curves]
    for found, expected in zip(sharded.curves, local.curves, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert local.best["validation_auc"] > 0.55
    assert type(sharded.model) is CTRModel
    for name, value in local.model.state_dict().items():
        torch.testing.assert_close(sharded.model.state_dict()[name], value, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"table_optimiser": "lazy_adam"}, "need rowwise_adagrad"), ({"accumulate": 2}, "set it to 1")],
)
def test_settings_that_fused_steps_do_not_allow_are_sentences(change, said):
    with pytest.raises(NarrowcastError, match=said):
        replace(TRAINING, **change)


def test_a_training_without_workers_and_a_plan_that_is_not_plain(tiny_encoded, tmp_path, capsys):
    """The first is refused; the second has whole tables and says so."""
    config = replace(TRAINING, num_workers=0, epochs=1)
    with pytest.raises(NarrowcastError, match="set num_workers to at least 1"):
        train_full(tiny_encoded, config, tmp_path / "model", width=WIDTH, inner_width=0)
    layout = EncodedData(tiny_encoded).layout
    full_plan(layout.table_rows, WIDTH, inner_width=8).save(tmp_path / "plan" / "plan.json")
    train_from_plan(tiny_encoded, tmp_path / "plan", config, tmp_path / "model")
    assert "every worker has the whole of them" in capsys.readouterr().out


@pytest.mark.skipif(INSTALLED, reason="torchrec is installed")
def test_without_the_extra_a_sentence_says_how_to_get_it():
    with pytest.raises(NarrowcastError, match="run make setup-torchrec"):
        importlib.import_module("narrowcast.components.train.torchrec_tables")


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
