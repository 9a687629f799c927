"""Two real processes on gloo: what they compute together is what one process does."""

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit, fresh_state, train_epoch
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.workers import ALONE, Workers

SIZE = 2
CONFIG = TrainConfig(
    epochs=4,
    patience=4,
    batch_size=128,
    table_optimiser="rowwise_adagrad",
    table_learning_rate=0.05,
    model=ModelConfig(hidden=(16,)),
)
ONE_STEP = replace(CONFIG, batch_size=10**6)
PREDICTED_AT_ONCE = 7
"""So few rows that the last batch leaves a worker without any."""


def start(data: EncodedData, config: TrainConfig = CONFIG):
    plan = full_plan(data.layout.table_rows, 8, inner_width=12)
    return plan, fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)


def gradients(data: EncodedData, workers: Workers = ALONE) -> dict[str, torch.Tensor]:
    """Of a step on all training rows."""
    _, state = start(data, ONE_STEP)
    train_epoch(state, data.split("train"), ONE_STEP, workers)
    return {name: parameter.grad for name, parameter in state.model.named_parameters()}


def odd_rows(data: EncodedData):
    """As many that one is left for the last batch, of a worker's `PREDICTED_AT_ONCE` rows and the other's."""
    split = data.split("validation")
    number = (len(split) - 1) // (SIZE * PREDICTED_AT_ONCE) * SIZE * PREDICTED_AT_ONCE + 1
    return replace(
        split,
        inputs=split.inputs.take(slice(number)),
        **{name: getattr(split, name)[:number] for name in ("label_B", "row_id_B", "time_B", "group_B")},
    )


def work(rank: int, port: int, encoded: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=SIZE)
    workers, data = Workers(rank=rank, size=SIZE), EncodedData(encoded)
    torch.save(gradients(data, workers), folder / f"gradients{rank}.pt")
    plan, state = start(data)
    np.save(folder / f"predicted{rank}.npy", predict(state.model, odd_rows(data), PREDICTED_AT_ONCE, workers))
    if rank == 0:
        (folder / "state").mkdir()

    def save(state):
        if rank == 0:
            state.save(folder / "state")

    fit(data, plan, replace(CONFIG, epochs=2), state=state, workers=workers, on_epoch=save)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tiny_encoded, tmp_path_factory):
    """What two workers wrote."""
    folder = tmp_path_factory.mktemp("workers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, tiny_encoded, folder), nprocs=SIZE)
    return folder


def test_the_workers_gradients_sum_to_that_of_the_whole_batch(together, tiny_encoded):
    whole = gradients(EncodedData(tiny_encoded))
    found = [torch.load(together / f"gradients{rank}.pt") for rank in range(SIZE)]
    assert {gradient.is_sparse for gradient in whole.values()} == {True, False}
    for name, expected in whole.items():
        for gradient in found:
            assert gradient[name].is_sparse == expected.is_sparse
            dense = (gradient[name].to_dense(), expected.to_dense())
            torch.testing.assert_close(*dense, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(found[0][name].to_dense(), found[1][name].to_dense())


def test_both_predict_every_row_and_one_of_them_sometimes_none(together, tiny_encoded):
    data = EncodedData(tiny_encoded)
    split = odd_rows(data)
    assert len(split) > 1
    expected = predict(start(data)[1].model, split)
    for rank in range(SIZE):
        np.testing.assert_allclose(np.load(together / f"predicted{rank}.npy"), expected, rtol=1e-5)


def test_one_worker_ends_what_two_began(together, tiny_encoded):
    data = EncodedData(tiny_encoded)
    plan, state = start(data)
    state.load(together / "state")
    assert state.epoch == 2
    resumed = fit(data, plan, CONFIG, state=state)
    whole = fit(data, plan, CONFIG)
    assert len(resumed.curves) == len(whole.curves) == CONFIG.epochs
    for found, expected in zip(resumed.curves, whole.curves, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert whole.curves[3]["train_logloss"] < whole.curves[2]["train_logloss"] - 1e-3
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)
