"""One trial: a plan within the budget, a short training on it, and its AUC on validation as it would be served."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any, cast

from narrowcast.components.search.registry import Problem, find_method
from narrowcast.components.train.fit import deterministic, fit
from narrowcast.components.train.metrics import auc
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.tables import TableGroup, round_as_stored

SHORT_EPOCHS = 3
"""Most epochs of a trial's training; it ends at the first that is no better on validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """`settings` of the method to search a plan with, or a reference's `plan`."""

    name: str
    settings: Any = None
    plan: Plan | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    plan: Plan
    validation_auc: float


def run_trial(problem: Problem, method: str, trial: Trial) -> Outcome:
    """Same arguments, same outcome, in whichever process."""
    with contextlib.redirect_stdout(None):
        plan = trial.plan or find_method(method).search(problem, trial.settings)
        training = replace(problem.training, epochs=SHORT_EPOCHS, patience=1)
        model = fit(problem.data, plan, training).model
    assert isinstance(model, CTRModel)
    for group in model.embedding.groups:
        round_as_stored(cast(TableGroup, group))
    validation = problem.data.split("validation")
    with deterministic():
        return Outcome(plan=plan, validation_auc=auc(validation.label_B, predict(model, validation)))


def uniform_plan(problem: Problem, width: int) -> Plan:
    """The first `width` columns of every table: the control that a search must beat."""
    tables = {
        name: TablePlan(
            rows=rows,
            blocks=(Block(start=0, stop=rows, columns=tuple(range(width)), bits=problem.bits),),
            inner_width=problem.inner_width,
        )
        for name, rows in problem.table_rows.items()
    }
    return Plan(width=problem.width, tables=tables, method="uniform", parameters={"width": width})
