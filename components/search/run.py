"""What the search step does: try a method's settings within the byte budget and keep the best plan."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.search.budget import check_budget, parse_budget
from narrowcast.components.search.registry import Problem, find_method
from narrowcast.components.search.trial import Outcome, Trial, run_trial, uniform_plan
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.plan import BITS, Plan, full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, write_json, writing_directory

REFERENCE_WIDTHS = (2, 4, 8)
"""Uniform widths that every search is shown beside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """See the search step's parameters. `training` is that of a trial, in one process; `inner_width` 0 is none,
    `num_workers` 0 runs the trials in this process."""

    training: TrainConfig = field(default_factory=TrainConfig)
    width: int = 16
    inner_width: int = 0
    method: str = "pep"
    budget: str = "1/10"
    bits: int = 8
    num_trials: int = 2
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, least in {"width": 1, "inner_width": 0, "num_trials": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least {least}")
        if self.bits not in BITS:
            raise NarrowcastError(f"bits is {self.bits}: possible are {', '.join(map(str, BITS))}")
        find_method(self.method)


def search_plan(encoded: str | Path, config: SearchConfig, target: str | Path) -> None:
    """Write `plan.json` and `search.json` to `target`.

    The best trial by validation AUC wins, the smaller of equals. Raises NarrowcastError for a budget that is nonsense
    or below the method's least, and for settings that a method does not have.
    """
    data = EncodedData(encoded)
    problem = problem_of(data, config)
    trials, references = trials_of(config), references_of(problem)
    outcomes = run_all(problem, config, [*trials, *references])
    tried = [_row(trial, outcome) for trial, outcome in zip(trials, outcomes, strict=False)]
    compared = [_row(trial, outcome) for trial, outcome in zip(references, outcomes[len(trials) :], strict=True)]
    best = choose(outcomes[: len(trials)])
    if best.plan.stored_bytes() > problem.budget_bytes:
        raise NarrowcastError(
            f"method '{config.method}' gave a plan of {best.plan.stored_bytes()} bytes over the budget of "
            f"{problem.budget_bytes}, which is a defect of the method; please report it"
        )
    found = {
        "budget_bytes": problem.budget_bytes,
        "full_bytes": best.plan.full_bytes(),
        "method": config.method,
        "trials": tried,
        "references": compared,
        "per_table": per_table(best.plan),
    }
    num_rows = len(data.split("train"))
    record = StepRecord(
        step="search",
        rows_in=num_rows,
        rows_out=num_rows,
        metrics={
            "budget_bytes": problem.budget_bytes,
            "stored_bytes": best.plan.stored_bytes(),
            "full_bytes": best.plan.full_bytes(),
            "validation_auc": best.validation_auc,
        },
        details=found,
    )
    with writing_directory(target) as directory:
        best.plan.save(directory / "plan.json")
        write_json(directory / "search.json", found)
        record.save(directory)
    print(
        f"kept {best.plan.stored_bytes():,} of {best.plan.full_bytes():,} bytes (budget {problem.budget_bytes:,}), "
        f"validation AUC {best.validation_auc:.4f} after a short training"
    )


def problem_of(data: EncodedData, config: SearchConfig) -> Problem:
    """The search as every method sees it, its budget checked."""
    full_bytes = full_plan(data.layout.table_rows, config.width).full_bytes()
    problem = Problem(
        data=data,
        counts=data.table_counts(),
        budget_bytes=parse_budget(config.budget, full_bytes),
        width=config.width,
        bits=config.bits,
        inner_width=config.inner_width or None,
        training=config.training,
    )
    check_budget(problem.budget_bytes, find_method(config.method).least_bytes(problem), config.method)
    return problem


def trials_of(config: SearchConfig) -> list[Trial]:
    """Raises NarrowcastError for more trials than the method has settings."""
    settings = find_method(config.method).settings(config.num_trials)
    if len(settings) < config.num_trials:
        raise NarrowcastError(
            f"method '{config.method}' has {len(settings)} settings to try: set num_trials to at most {len(settings)}"
        )
    return [Trial(name=f"{config.method} {i + 1}", settings=setting) for i, setting in enumerate(settings)]


def references_of(problem: Problem) -> list[Trial]:
    """Uniform widths below the full one."""
    widths = [width for width in REFERENCE_WIDTHS if width < problem.width]
    return [Trial(name=f"uniform {width}", plan=uniform_plan(problem, width)) for width in widths]


def run_all(problem: Problem, config: SearchConfig, trials: list[Trial]) -> list[Outcome]:
    """The trials' outcomes in their order; on Ray with `num_workers`, else one after the other in this process."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("searching", total=len(trials))
        if config.num_workers:
            from narrowcast.components.search.ray_trials import run_on_ray

            return run_on_ray(problem, config.method, trials, config.num_workers, lambda: progress.advance(bar))
        outcomes = []
        for trial in trials:
            outcomes.append(run_trial(problem, config.method, trial))
            progress.advance(bar)
        return outcomes


def choose(outcomes: list[Outcome]) -> Outcome:
    """Highest validation AUC; of equals the fewest bytes, then the first."""
    return min(outcomes, key=lambda outcome: (-outcome.validation_auc, outcome.plan.stored_bytes()))


def per_table(plan: Plan) -> dict[str, dict[str, Any]]:
    """Rows, kept rows, widths and bits of every table, and the bytes it stores."""
    return {
        name: {
            "rows": table.rows,
            "kept_rows": table.kept_rows,
            "widths": [block.width for block in table.blocks],
            "bits": [block.bits for block in table.blocks],
            "projection": table.projection,
            "stored_bytes": table.stored_bytes(plan.width),
        }
        for name, table in plan.tables.items()
    }


def _row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": trial.name,
        "settings": asdict(trial.settings) if trial.settings else outcome.plan.parameters,
        "bytes": outcome.plan.stored_bytes(),
        "validation_auc": outcome.validation_auc,
    }
