"""PEP: the equation, a start from which pruning begins, the budget, and rows by frequency."""

import dataclasses
import itertools
from dataclasses import replace

import pytest
import torch

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.search.methods import pep
from narrowcast.components.search.methods.pep import PEPConfig, PEPRowConfig, Supernet, soft_threshold
from narrowcast.components.search.registry import Problem, find_method
from narrowcast.components.search.run import SearchConfig, problem_of
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.model import to_tensors
from narrowcast.errors import NarrowcastError


@pytest.fixture(scope="module")
def problem(tiny_encoded) -> Problem:
    return problem_of(
        EncodedData(tiny_encoded), SearchConfig(width=8, training=TrainConfig(batch_size=128), budget="1/10")
    )


def test_soft_threshold_by_hand():
    values, s = torch.tensor([-0.8, -0.5, 0.2, 0.5, 0.9]), torch.zeros(())  # sigmoid(0) = 0.5
    torch.testing.assert_close(soft_threshold(values, s), torch.tensor([-0.3, 0.0, 0.0, 0.0, 0.4]))


@pytest.mark.parametrize("config", [PEPConfig(start=-30.0), PEPRowConfig(start=-30.0)])
def test_thresholds_far_below_start_like_a_plain_model(problem, config):
    net = Supernet(problem, config)
    batch, _ = next(problem.data.split("train").batches(64))
    inputs = to_tensors(batch)
    torch.testing.assert_close(net.forward(*inputs), net.model(*inputs), atol=1e-7, rtol=0)


@pytest.mark.parametrize("config", [PEPConfig(), PEPRowConfig()])
def test_the_task_moves_the_thresholds_and_pruning_starts_within_200_steps(problem, config):
    net = Supernet(problem, dataclasses.replace(config, sparsity=0.0))
    next(net.steps())
    gradients = [table.s_UD.grad.abs().max().item() for table in net.tables.values()]
    assert min(gradients) > 1e-9
    net = Supernet(problem, config)
    before = sum(int(table.nonzero().sum()) for table in net.tables.values())
    left = (sum(int(table.nonzero().sum()) for table in net.tables.values()) for _ in net.steps())
    assert any(nonzeros < 0.9 * before for nonzeros in itertools.islice(left, 200))


@pytest.mark.parametrize("init_std", [0.01, 0.001, 0.1])
def test_the_start_is_just_under_the_tables_scale(problem, init_std):
    training = replace(problem.training, model=ModelConfig(init_std=init_std))
    threshold = torch.sigmoid(torch.tensor(Supernet(replace(problem, training=training), PEPConfig()).start)).item()
    assert init_std / 100 < threshold < init_std


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("budget", ["1/3", "1/10", "1/40"])
def test_columns_fit_the_budget_and_use_it(problem, bits, budget):
    config = SearchConfig(width=8, training=TrainConfig(batch_size=128), budget=budget, bits=bits)
    problem = problem_of(problem.data, config)
    plan = pep.search_columns(problem, PEPConfig())
    assert plan.stored_bytes() <= problem.budget_bytes
    assert all(len(table.blocks) == 1 and table.kept_rows == table.rows for table in plan.tables.values())
    for name, table in plan.tables.items():
        block = table.blocks[0]
        for column in set(range(plan.width)) - set(block.columns):
            wider = dataclasses.replace(block, columns=tuple(sorted({*block.columns, column})))
            tables = {**plan.tables, name: dataclasses.replace(table, blocks=(wider,))}
            assert dataclasses.replace(plan, tables=tables).stored_bytes() > problem.budget_bytes - plan.width


def test_rows_fit_the_budget_and_row_zero_stays(problem):
    plan = pep.search_rows(problem, PEPRowConfig())
    row_bytes = 8 + 2
    assert problem.budget_bytes - row_bytes < plan.stored_bytes() <= problem.budget_bytes
    assert all(table.kept_rows >= 1 and table.blocks[0].width == plan.width for table in plan.tables.values())


def test_the_least_budget_by_row_keeps_row_zero_of_every_table(problem):
    least = find_method("pep_row").least_bytes(problem)
    plan = pep.search_rows(dataclasses.replace(problem, budget_bytes=least), PEPRowConfig())
    assert [table.kept_rows for table in plan.tables.values()] == [1] * len(plan.tables)


def test_same_seed_same_plan(problem):
    assert pep.search_columns(problem, PEPConfig()) == pep.search_columns(problem, PEPConfig())


def test_thresholds_that_start_at_the_trap_end_in_a_sentence(problem):
    with pytest.raises(NarrowcastError, match="did not reach"):
        pep.search_columns(problem, PEPConfig(start=-150.0, max_steps=50))


def test_an_inner_width_goes_into_the_plan(problem):
    plan = pep.search_columns(dataclasses.replace(problem, inner_width=32), PEPConfig())
    assert {table.inner_width for table in plan.tables.values()} == {32}
