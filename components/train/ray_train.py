"""Training on Ray Train: the loop of `fit` in every worker, a checkpoint an epoch, and a restart from the last one."""

import contextlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.fit import TrainConfig, fit, fresh_state
from narrowcast.components.train.job_files import address_of, job_folder, local_copy
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Plan, demand_roundable
from narrowcast.components.train.ray_session import ray_session
from narrowcast.components.train.state import TrainState
from narrowcast.components.train.workers import Workers
from narrowcast.errors import NarrowcastError
from narrowcast.objects import filesystem

MAX_FAILURES = 3
"""How often the workers are started again before the run is given up."""
LINES = "lines"
"""Key of the printed lines in what a worker reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker is told. `encoded` is an address that all of them can read."""

    encoded: str
    plan: Plan
    config: TrainConfig


class Lines(UserCallback):
    """Appends the lines that the first worker reports to a file of this process's machine, where Ray runs it too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        with self.path.open("a") as stream:
            stream.writelines(f"{line}\n" for line in metrics[0][LINES])


def ray_fit(data: EncodedData, plan: Plan, config: TrainConfig) -> TrainState:
    """Train on `config.num_workers` Ray Train workers, on GPUs where the cluster has one for each; else as `fit`.

    A worker that dies restarts all of them from the last epoch's checkpoint, which changes no bit of the outcome. With
    `config.min_workers`, workers for which no machine is left do not hold the others up: those go on alone, which is
    the same training up to rounding and dropout; and Ray starts more again once there is room.
    Raises NarrowcastError for bad data, for a plan that cannot be trained as `config` says, and when the workers die
    more than `MAX_FAILURES` times.
    """
    if config.tables == "torchrec":
        from narrowcast.components.train.torchrec_tables import demand_plain

        demand_plain(data.layout, plan)
    if config.quantisation_aware:
        demand_roundable(plan)
    folder = Path(tempfile.mkdtemp(prefix="narrowcast-train-"))
    job = Job(encoded=address_of(data.directory), plan=plan, config=config)
    store, path = filesystem(job_folder("train") or folder)
    lines = folder / "lines.txt"
    try:
        with ray_session(config.num_workers), _printing(lines), _interrupt_handler_kept():
            trainer = TorchTrainer(
                _work,  # type: ignore[arg-type]  # it may return a value
                train_loop_config={"job": job},
                scaling_config=ScalingConfig(
                    num_workers=_num_workers(config),
                    use_gpu=ray.cluster_resources().get("GPU", 0) >= config.num_workers,
                ),
                run_config=RunConfig(
                    name="run",
                    storage_path=path,
                    storage_filesystem=store,
                    callbacks=[Lines(lines)],  # type: ignore[list-item]  # an older kind is declared
                    failure_config=FailureConfig(max_failures=MAX_FAILURES),
                    checkpoint_config=CheckpointConfig(num_to_keep=1),
                ),
            )
            result: Any = trainer.fit()
        if result.return_value:
            raise NarrowcastError(result.return_value)
        assert result.checkpoint is not None
        state = _fresh_state(data, job, torch.device("cpu"))
        with result.checkpoint.as_directory() as directory:
            state.load(Path(directory))
        state.restore_best()
        return state
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise NarrowcastError(_sentence(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _work(settings: dict[str, Job]) -> str | None:
    """The body of one worker; returns why it refuses, if it does."""
    job = settings["job"]
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), size=context.get_world_size())
    lines: list[str] = []

    def report(state: TrainState) -> None:
        whole = _whole(state, job.config)
        if workers.rank or whole is None:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as directory:
            whole.save(Path(directory))
            metrics = {**whole.curves[-1], LINES: list(lines)}
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))
        lines.clear()

    data = EncodedData(local_copy(job.encoded))
    state = _state(data, job, get_device())
    try:
        fit(data, job.plan, job.config, state=state, workers=workers, on_epoch=report, tell=lines.append)
    except NarrowcastError as error:  # starting again would end the same way
        return str(error)
    return None


def _state(data: EncodedData, job: Job, device: torch.device) -> TrainState:
    """Before the first step, or where the workers before these have come to."""
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as directory:
        if job.config.tables == "torchrec":
            from narrowcast.components.train.torchrec_state import load_shards, sharded_state

            state = sharded_state(data.layout, job.plan, job.config, device)
            if directory:
                load_shards(state, Path(directory))
        else:
            state = _fresh_state(data, job, device)
            if directory:
                state.load(Path(directory))
    if directory:
        state.resumed_from_epoch = state.epoch
    return state


def _whole(state: TrainState, config: TrainConfig) -> TrainState | None:
    """`state` as an ordinary training's, where tables lie spread over the workers for the first of them alone."""
    if config.tables == "local":
        return state
    from narrowcast.components.train.torchrec_state import gathered_state

    return gathered_state(state, config)


def _fresh_state(data: EncodedData, job: Job, device: torch.device) -> TrainState:
    model = CTRModel(data.layout, job.plan, job.config.model, job.config.seed).to(device)
    return fresh_state(model, job.config)


def _num_workers(config: TrainConfig) -> Any:
    """A number, or the least and the most."""
    return (config.min_workers, config.num_workers) if config.min_workers else config.num_workers


def _sentence(error: Exception) -> str:
    """The first worker's own reason, without the traceback around it."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    reason = str(cause).strip().splitlines()[-1][:300] if str(cause).strip() else type(cause).__name__
    return (
        f"training on Ray failed, {MAX_FAILURES} restarts included ({type(cause).__name__}: {reason}): free memory, "
        "lower batch_size or num_workers, or set num_workers to 0 to train in one process"
    )


@contextlib.contextmanager
def _printing(path: Path) -> Iterator[None]:
    """Print the lines that are appended to `path` as they come."""
    done = threading.Event()

    def follow() -> None:
        path.touch()
        with path.open() as stream:
            while True:
                last_look = done.wait(0.2)
                for line in stream:
                    print(line, end="", flush=True)
                if last_look:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Put back the SIGINT handler that Ray Train replaces."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
