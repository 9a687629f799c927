"""Mixed dimensions: the paper's rule in closed form, and the largest lambda within a budget."""

import dataclasses

import pytest

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.search.methods.mde import MDEConfig, dimension, mixed_plan, mixed_table, search
from narrowcast.components.search.registry import Problem, find_method
from narrowcast.components.search.run import SearchConfig, problem_of
from narrowcast.errors import NarrowcastError


@pytest.fixture(scope="module")
def problem(tiny_encoded) -> Problem:
    return problem_of(EncodedData(tiny_encoded), SearchConfig(method="mde", budget="1/4"))


@pytest.mark.parametrize(
    ("scale", "rows", "alpha", "expected"),
    [
        (16, 1, 0.3, 16),
        (16, 2**10, 0.3, 2),  # 16 / 2^3
        (16, 2**10, 0.1, 8),  # 16 / 2^1
        (16, 2**10, 0.0, 16),
        (1024, 2**10, 0.3, 16),  # 128, but the model is 16 wide
        (1, 2**30, 0.5, 1),  # never under 1
        (11.4, 1, 0.3, 16),  # nearest in the logarithm: above 8 sqrt 2
        (11.2, 1, 0.3, 8),
    ],
)
def test_dimension_by_hand(scale, rows, alpha, expected):
    assert dimension(scale, rows, alpha, 16) == expected


def test_bytes_are_columns_plus_projection():
    table = mixed_table(1000, 4, 16, bits=32)
    assert table.projection == 4
    assert table.stored_bytes(16) == 4 * (1000 * 4 + 4 * 16)


def test_a_small_table_stays_plain_where_the_projection_weighs_more():
    assert mixed_table(3, 8, 16, bits=8).projection is None


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("width", [10, 16])
def test_the_budget_is_used_as_far_as_one_lambda_can(problem, alpha, width):
    problem = dataclasses.replace(problem, width=width)
    config = MDEConfig(alpha=alpha)
    for share in (0.1, 0.3, 0.6, 1.0):
        budget = int(share * 64 * sum(problem.table_rows.values()))
        least = mixed_plan(problem.table_rows, 1.0, alpha, width, problem.bits).stored_bytes()
        found = search(dataclasses.replace(problem, budget_bytes=max(budget, least)), config)
        assert found.stored_bytes() <= max(budget, least)
        scale = found.parameters["lambda"]
        finer = [mixed_plan(problem.table_rows, scale * 1.01**i, alpha, width, problem.bits) for i in range(2000)]
        fitting = [plan.stored_bytes() for plan in finer if plan.stored_bytes() <= max(budget, least)]
        assert max(fitting) == found.stored_bytes()


def test_more_rows_never_get_more_columns(problem):
    plan = search(problem, MDEConfig(alpha=0.3))
    by_rows = sorted(plan.tables.values(), key=lambda table: table.rows)
    widths = [table.projection or plan.width for table in by_rows]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 1


def test_an_inner_width_is_refused(problem):
    with pytest.raises(NarrowcastError, match="exclude an inner width"):
        search(dataclasses.replace(problem, inner_width=32), MDEConfig())


def test_every_trial_has_a_temperature_of_its_own():
    found = find_method("mde").settings(8)
    assert len({config.alpha for config in found}) == 8
