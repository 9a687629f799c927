"""Mixed-dimension embeddings: fewer columns for tables with more rows, by one rule of frequency.

arXiv 1909.11810: width d_f = lambda N_f^-alpha for a table of N_f rows, rounded to a power of two, with a projection
from d_f to the model's D.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from narrowcast.components.search.registry import Method, Problem, register
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.errors import NarrowcastError

ALPHAS = (0.3, 0.1, 0.5, 0.2, 0.4, 0.0, 0.6, 0.7)
"""Temperatures in the order that trials take them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MDEConfig:
    """`alpha`: how strongly a table's width falls with its rows; 0 gives every table the same."""

    alpha: float = ALPHAS[0]


def dimension(scale: float, rows: int, alpha: float, width: int) -> int:
    """d = scale x rows^-alpha as the nearest power of two (in the logarithm), at least 1 and at most `width`."""
    exponent = round(math.log2(scale) - alpha * math.log2(rows))
    return min(width, 2 ** max(0, exponent))


def mixed_table(rows: int, dimension: int, width: int, bits: int) -> TablePlan:
    """`dimension` columns lifted to `width`; the plain table where that weighs no more than columns plus projection.

    The plain table is our choice: for a table of few rows the projection outweighs what it saves.
    """
    plain = TablePlan(rows=rows, blocks=(Block(start=0, stop=rows, columns=tuple(range(width)), bits=bits),))
    if dimension >= width:
        return plain
    columns = tuple(range(dimension))
    lifted = TablePlan(rows=rows, blocks=(Block(start=0, stop=rows, columns=columns, bits=bits),), projection=dimension)
    return min(plain, lifted, key=lambda table: table.stored_bytes(width))


def mixed_plan(table_rows: dict[str, int], scale: float, alpha: float, width: int, bits: int) -> Plan:
    tables = {
        name: mixed_table(rows, dimension(scale, rows, alpha, width), width, bits) for name, rows in table_rows.items()
    }
    return Plan(width=width, tables=tables, method="mde", parameters={"alpha": alpha, "lambda": scale})


def least_bytes(problem: Problem) -> int:
    _refuse_inner_width(problem)
    tables = [mixed_table(rows, 1, problem.width, problem.bits) for rows in problem.table_rows.values()]
    return sum(table.stored_bytes(problem.width) for table in tables)


def search(problem: Problem, config: MDEConfig) -> Plan:
    """The plan of the largest lambda within the budget.

    Bytes never fall as lambda grows, and change only where some table's width doubles, lambda = 2^(j + 1/2) N_f^alpha.
    Bisection over those finds the largest exactly.
    """
    _refuse_inner_width(problem)
    doublings = range(math.ceil(math.log2(problem.width)))
    scales = sorted(
        {
            1.0,
            *(
                2 ** (j + 0.5) * rows**config.alpha * (1 + 1e-9)
                for j in doublings
                for rows in problem.table_rows.values()
            ),
        }
    )

    def plan_of(scale: float) -> Plan:
        return mixed_plan(problem.table_rows, scale, config.alpha, problem.width, problem.bits)

    fitting = bisect_right(scales, problem.budget_bytes, key=lambda scale: plan_of(scale).stored_bytes())
    return plan_of(scales[fitting - 1])


def _refuse_inner_width(problem: Problem) -> None:
    if problem.inner_width:
        raise NarrowcastError(
            "method 'mde' stores projections, which exclude an inner width: set inner_width to 0 or choose another "
            "method"
        )


def settings(num_trials: int) -> tuple[MDEConfig, ...]:
    return tuple(MDEConfig(alpha=alpha) for alpha in ALPHAS[:num_trials])


register(
    MDEConfig,
    Method(
        name="mde",
        summary="width by table size, d = lambda rows^-alpha, lifted to the model's width",
        source="mixed dimension embeddings, arXiv 1909.11810",
        settings=settings,
        least_bytes=least_bytes,
        search=search,
    ),
)
