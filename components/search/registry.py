"""The search methods by the class of their settings, and what every method is given.

A method is one file in `methods/` that calls `register`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.plan import Plan
from narrowcast.errors import NarrowcastError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is to be made small, and how small.

    `counts`: training frequency by table and row. `bits` and `inner_width` go into every block and table of the plan;
    `training` trains the supernet of a method that has one, and every trial.
    """

    data: EncodedData
    counts: dict[str, NDArray[np.int64]]
    budget_bytes: int
    width: int
    bits: int
    inner_width: int | None
    training: TrainConfig

    @property
    def table_rows(self) -> dict[str, int]:
        return self.data.layout.table_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A search.

    `settings(n)` gives the n settings that n trials try, or as many as there are; `least_bytes(problem)` the bytes of
    the smallest possible plan. `search(problem, settings)` returns a plan of at most `problem.budget_bytes`; same
    input, same plan.
    """

    name: str
    summary: str
    source: str
    settings: Callable[[int], tuple[Any, ...]]
    least_bytes: Callable[[Problem], int]
    search: Callable[[Problem, Any], Plan]


METHODS: dict[type, Method] = {}


def register(config: type, method: Method) -> None:
    """Add a method; `config` is the class of its settings."""
    METHODS[config] = method


def methods() -> tuple[Method, ...]:
    """Every method, in the order of their files' names."""
    package = importlib.import_module("narrowcast.components.search.methods")
    for file in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{file.name}")
    return tuple(METHODS.values())


def describe_methods() -> dict[str, str]:
    """What every method does and where it is from, by name."""
    return {method.name: f"{method.summary} ({method.source})" for method in methods()}


def find_method(name: str) -> Method:
    """Raises NarrowcastError with the nearest valid name."""
    known = {method.name: method for method in methods()}
    if name not in known:
        raise NarrowcastError(f"no search method named '{name}': {nearest(name, known)}")
    return known[name]
