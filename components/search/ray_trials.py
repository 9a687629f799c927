"""Trials side by side on Ray."""

from collections.abc import Callable
from dataclasses import replace

import ray
from ray.exceptions import RayError, RayTaskError

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.search.registry import Problem
from narrowcast.components.search.trial import Outcome, Trial, run_trial
from narrowcast.components.train.job_files import address_of, local_copy
from narrowcast.components.train.ray_session import ray_session
from narrowcast.errors import NarrowcastError


def run_on_ray(
    problem: Problem, method: str, trials: list[Trial], num_workers: int, on_done: Callable[[], None]
) -> list[Outcome]:
    """The trials' outcomes in their order, at most `num_workers` at a time, a core each.

    Ray starts a trial again whose worker dies. Raises NarrowcastError where a trial does, or where Ray gives up.
    """
    outcomes: dict[int, Outcome] = {}
    with ray_session(num_workers):
        task = ray.remote(num_cpus=1, max_retries=2)(_run)
        shared, encoded = ray.put(problem), address_of(problem.data.directory)
        waiting = list(enumerate(trials))
        running: dict[ray.ObjectRef, int] = {}
        while waiting or running:
            while waiting and len(running) < num_workers:
                position, trial = waiting.pop(0)
                running[task.remote(shared, encoded, method, trial)] = position
            finished, _ = ray.wait(list(running), num_returns=1)
            outcomes[running.pop(finished[0])] = _result(finished[0])
            on_done()
    return [outcomes[position] for position in range(len(trials))]


def _run(problem: Problem, encoded: str, method: str, trial: Trial) -> Outcome:
    """The trial on the machine that Ray has chosen, and on its copy of the data."""
    return run_trial(replace(problem, data=EncodedData(local_copy(encoded))), method, trial)


def _result(reference: "ray.ObjectRef[Outcome]") -> Outcome:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, NarrowcastError):
            raise error.cause from None
        raise
    except RayError as error:
        raise NarrowcastError(
            f"Ray could not finish a trial ({' '.join(str(error).split())}): see Ray's logs, or set num_workers to 0"
        ) from None
