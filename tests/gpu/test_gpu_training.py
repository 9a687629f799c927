"""Training on one GPU against training on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit, fresh_state
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.optimisers import TABLE_OPTIMISERS
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.precision import has_bfloat16
from narrowcast.components.train.rows import look_up_rows

DEVICE = "cuda"
CONFIG = TrainConfig(epochs=3, patience=3, batch_size=128, learning_rate=0.01, model=ModelConfig(hidden=(16,)))


@pytest.fixture
def data(tiny_encoded):
    return EncodedData(tiny_encoded)


def quiet(line):
    pass


def train(data, config, device):
    plan = full_plan(data.layout.table_rows, 8)
    model = CTRModel(data.layout, plan, config.model, config.seed).to(device)
    return fit(data, plan, config, state=fresh_state(model, config), tell=quiet)


@pytest.mark.parametrize("table_optimiser", TABLE_OPTIMISERS)
def test_a_gpu_trains_as_the_cpu_does_and_repeats_to_the_bit(table_optimiser, data):
    config = replace(CONFIG, table_optimiser=table_optimiser)
    cpu, gpu, again = (train(data, config, device) for device in ("cpu", DEVICE, DEVICE))
    assert gpu.device.type == DEVICE
    for expected, found in zip(cpu.curves, gpu.curves, strict=True):
        assert found == pytest.approx(expected, abs=2e-3)
    for name, value in gpu.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize("table_optimiser", TABLE_OPTIMISERS)
@pytest.mark.parametrize(("rows", "width", "num_ids"), [(1, 1, 1), (1000, 16, 4096), (50, 7, 33), (100, 8, 0)])
def test_sparse_steps_are_those_of_the_cpu(table_optimiser, rows, width, num_ids):
    tables = {}
    for device in ("cpu", DEVICE):
        generator = torch.Generator().manual_seed(0)
        tables[device] = table = nn.Parameter(torch.randn(rows, width, generator=generator).to(device))
        optimiser = TABLE_OPTIMISERS[table_optimiser]([table], 0.1, 0.01)
        for _ in range(3):
            ids_n = torch.randint(0, rows, (num_ids,), generator=generator).to(device)
            gradient_nk = torch.randn(num_ids, width, generator=generator).to(device)
            optimiser.zero_grad()
            (look_up_rows(table, ids_n) * gradient_nk).sum().backward()
            assert table.grad.is_sparse
            optimiser.step()
    torch.testing.assert_close(tables[DEVICE].detach().cpu(), tables["cpu"].detach(), rtol=1e-4, atol=1e-5)


def test_bfloat16_learns_as_float32_does(data):
    if not has_bfloat16(torch.device(DEVICE)):
        pytest.skip("this GPU has no bfloat16")
    whole, half = (train(data, replace(CONFIG, precision=precision), DEVICE) for precision in ("float32", "bfloat16"))
    assert half.best["validation_auc"] == pytest.approx(whole.best["validation_auc"], abs=0.02)
    assert all(value.dtype == torch.float32 for value in half.model.parameters())


def test_one_worker_on_nccl_trains_as_this_process_does(data):
    from narrowcast.components.train.ray_train import ray_fit

    expected = train(data, CONFIG, DEVICE)
    found = ray_fit(data, full_plan(data.layout.table_rows, 8), replace(CONFIG, num_workers=1))
    for one, other in zip(expected.curves, found.curves, strict=True):
        assert one == pytest.approx(other, abs=2e-3)
