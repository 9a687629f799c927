"""The training loop: the same in this process and in every Ray worker.

A step's batch belongs to all workers together: each computes the gradient of its share of the rows, in as many parts as
`accumulate` says, and all gradients are summed, so the step is that of one worker on the whole batch up to rounding.
"""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from narrowcast.components.data.encoded import Batch, EncodedData, Split
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.loader import read_ahead
from narrowcast.components.train.metrics import auc, logloss
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.optimisers import TABLE_OPTIMISERS, Optimisers
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.precision import MOST_AUC_LOSS, PRECISIONS, computing, demand_precision
from narrowcast.components.train.predict import predict
from narrowcast.components.train.schedule import SCHEDULES, rate_factor
from narrowcast.components.train.scorer import Scorer
from narrowcast.components.train.state import TrainState
from narrowcast.components.train.workers import ALONE, Workers
from narrowcast.errors import NarrowcastError, nearest

TABLES = ("local", "torchrec")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train. `batch_size` rows a step over all workers; `num_workers` 0 trains in this process without Ray.

    Training ends after `epochs`, or after `patience` epochs without a better AUC on validation. `table_optimiser` moves
    the embedding tables' rows, at `table_learning_rate` where given; Adam moves all else. `weight_decay`: L2 penalty
    on the rows that a step touches, on nothing else. `schedule` and `warmup_steps`: see `schedule.py`. `precision`
    bfloat16 computes the forward pass in it until validation says no. `accumulate`: parts in which a step's rows are
    computed, for less memory. `deterministic` false uses all cores and the fastest kernels, and bits may differ.
    `min_workers`, where given: training goes on with as few workers as that when machines are gone for good.
    `quantisation_aware`: rows pass through the plan's rounding wherever they are looked up, so that what is trained is
    what will be served; it changes nothing where the plan stores float32.
    `tables`: local, every worker has the whole of them; or torchrec, their rows lie spread over the workers (see
    `torchrec_tables.py`), which needs rowwise_adagrad; what trains without workers has them whole.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 1e-3
    num_workers: int = 0
    min_workers: int = 0
    seed: int = 0
    table_optimiser: str = "lazy_adam"
    table_learning_rate: float | None = None
    weight_decay: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    precision: str = "float32"
    accumulate: int = 1
    deterministic: bool = True
    patience: int = 2
    quantisation_aware: bool = False
    tables: str = "local"

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "num_workers": 0, "min_workers": 0, "seed": 0, "patience": 1}
        least |= {"weight_decay": 0, "warmup_steps": 0, "accumulate": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least {value}")
        if not math.isfinite(self.weight_decay):
            raise NarrowcastError(f"weight_decay is {self.weight_decay}: must be a finite number")
        if self.seed >= 2**32:
            raise NarrowcastError(f"seed is {self.seed}: must be less than 2^32")
        for name in ("learning_rate", "table_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise NarrowcastError(f"{name} is {rate}: must be a positive number")
        if max(self.num_workers, 1) * self.accumulate > self.batch_size:
            raise NarrowcastError(
                f"batch_size is {self.batch_size}, less than a row for each of {self.num_workers} workers and each of "
                f"{self.accumulate} parts"
            )
        if self.min_workers > self.num_workers:
            raise NarrowcastError(
                f"min_workers is {self.min_workers}: must be at most num_workers, which is {self.num_workers}"
            )
        known = {"table_optimiser": tuple(TABLE_OPTIMISERS), "schedule": tuple(SCHEDULES), "precision": PRECISIONS}
        known["tables"] = TABLES
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise NarrowcastError(f"{name} is '{getattr(self, name)}'; {nearest(getattr(self, name), values)}")
        if self.tables == "torchrec" and self.table_optimiser != "rowwise_adagrad":
            raise NarrowcastError(
                f"table_optimiser is {self.table_optimiser}: tables sharded by TorchRec need rowwise_adagrad"
            )
        if self.tables == "torchrec" and self.accumulate > 1:
            raise NarrowcastError(
                f"accumulate is {self.accumulate}: tables sharded by TorchRec move in every backward pass; set it to 1"
            )
        if self.tables == "torchrec" and self.quantisation_aware:
            raise NarrowcastError(
                "quantisation_aware is true: tables sharded by TorchRec are never rounded; set it to false"
            )


def fit(
    data: EncodedData,
    plan: Plan,
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    state: TrainState | None = None,
    workers: Workers = ALONE,
    on_epoch: Callable[[TrainState], None] | None = None,
    tell: Callable[[str], None] = print,
) -> TrainState:
    """Train and return the final state, its model at the values of the epoch best on validation.

    `model` is trained in place of a fresh `CTRModel`; it takes the same inputs. `state` goes on where a saved state
    ended. `on_epoch` sees the state after every epoch, `tell` a line on it. Raises NarrowcastError where a split is
    empty, validation has only one label, or the loss is no longer finite.
    """
    train, validation = data.split("train"), data.split("validation")
    for name, split in (("train", train), ("validation", validation)):
        if not len(split):
            raise NarrowcastError(
                f"{data.directory}: the {name} split has no rows; raise its share under `split` in the schema"
            )
    state = state or fresh_state(model or CTRModel(data.layout, plan, config.model, config.seed), config)
    demand_precision(config.precision, state.device)
    with deterministic(config.deterministic):
        while state.epoch < config.epochs and state.epochs_since_best < config.patience:
            started = time.monotonic()
            train_logloss = train_epoch(state, train, config, workers)
            rows_per_second = len(train) / (time.monotonic() - started)
            probability_B = predict(state.model, validation, workers=workers)
            validation_logloss = logloss(validation.label_B, probability_B)
            demand_finite(validation_logloss, state, config)
            state.end_epoch(
                train_logloss=train_logloss,
                validation_auc=auc(validation.label_B, probability_B),
                validation_logloss=validation_logloss,
            )
            say = tell if workers.rank == 0 else _nothing
            say(epoch_line(state, config, rows_per_second))
            if state.epoch == 1 and state.precision != "float32":
                guard_precision(state, validation, workers, say)
            if on_epoch:
                on_epoch(state)
    state.restore_best()
    return state


def fresh_state(model: nn.Module, config: TrainConfig) -> TrainState:
    """Before the first step. Raises NarrowcastError for a model or plan that cannot be trained quantisation-aware."""
    if config.quantisation_aware:
        if not isinstance(model, CTRModel):
            raise NarrowcastError(
                f"quantisation_aware is true: {type(model).__name__} has no tables of a plan to round; set it to false"
            )
        model.embedding.round_rows(True)
    return TrainState(model=model, optimisers=optimisers(model, config), precision=config.precision)


def train_epoch(state: TrainState, split: Split, config: TrainConfig, workers: Workers = ALONE) -> float:
    """One pass over the rows in an order given by seed and epoch; the mean logloss of its steps."""
    model, device = state.model.train(), state.device
    seed_dropout(config.seed, state.epoch, workers.rank)
    steps_per_epoch = math.ceil(len(split) / config.batch_size)
    validation_aucs = [entry["validation_auc"] for entry in state.curves]
    total_loss = torch.zeros((), device=device, dtype=torch.float64)
    steps = enumerate(read_ahead(shuffled_batches(split, config, state.epoch, workers)), state.epoch * steps_per_epoch)
    for step, (batch, label_B, num_rows) in steps:
        factor = rate_factor(
            config.schedule,
            step,
            num_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_steps,
            validation_aucs=validation_aucs,
        )
        state.optimisers.scale_rates(factor)
        state.optimisers.zero_grad()
        for part, target_B in parts(batch, label_B, config.accumulate):
            with computing(state.precision, device):
                logit_B = model(*to_tensors(part, device)).float()
            loss = nn.functional.binary_cross_entropy_with_logits(
                logit_B, torch.tensor(target_B, device=device, dtype=logit_B.dtype), reduction="sum"
            )
            total_loss += loss.detach()
            (loss / num_rows + penalty(model) / (workers.size * config.accumulate)).backward()
        workers.sum_gradients(list(model.parameters()))
        state.optimisers.step()
    mean_loss = workers.sum(total_loss).item() / len(split)
    demand_finite(mean_loss, state, config)
    return mean_loss


def parts(batch: Batch, label_B: NDArray[np.uint8], number: int) -> Iterator[tuple[Batch, NDArray[np.uint8]]]:
    """The rows in `number` stretches of equal size, give or take a row."""
    bounds = np.linspace(0, len(batch), number + 1).astype(int)
    for start, stop in itertools.pairwise(bounds):
        yield (batch if number == 1 else batch.take(slice(start, stop))), label_B[start:stop]


def penalty(model: nn.Module) -> Tensor | float:
    """What the model's head adds to the loss of a step, see `heads/registry.py`."""
    scorer = getattr(model, "scorer", None)
    own = getattr(scorer.head, "penalty", None) if isinstance(scorer, Scorer) else None
    value: Tensor | float = own() if own else 0.0
    return value


def guard_precision(state: TrainState, validation: Split, workers: Workers, tell: Callable[[str], None]) -> None:
    """Go back to float32 where the AUC on validation is lower in the training's precision, on the same weights."""
    with computing(state.precision, state.device):
        probability_B = predict(state.model, validation, workers=workers)
    loss = state.curves[-1]["validation_auc"] - auc(validation.label_B, probability_B)
    if not loss <= MOST_AUC_LOSS:
        tell(f"{state.precision} lowers the AUC on validation by {loss:.4f}: training goes on in float32")
        state.precision = "float32"


def demand_finite(loss: float, state: TrainState, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise NarrowcastError(
            f"the loss is no number in epoch {state.epoch + 1}: lower learning_rate ({config.learning_rate})"
        )


def shuffled_batches(
    split: Split, config: TrainConfig, epoch: int, workers: Workers = ALONE
) -> Iterator[tuple[Batch, NDArray[np.uint8], int]]:
    """This worker's share of every batch, and the number of rows of the whole batch.

    The rows of a batch are read in stored order: what one page of the mapped file holds is read once.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(len(split))
    for start in range(0, len(order), config.batch_size):
        rows = np.sort(order[start : start + config.batch_size])
        share = rows[workers.rank :: workers.size]
        yield split.inputs.take(share), np.asarray(split.label_B[share]), len(rows)


def optimisers(model: nn.Module, config: TrainConfig) -> Optimisers:
    """The table optimiser over the embedding rows, which alone decay, and Adam over all other parameters."""
    rows = [p for name, p in model.named_parameters() if name.endswith("weight_Rk")]
    others = [p for name, p in model.named_parameters() if not name.endswith("weight_Rk")]
    table_rate = config.table_learning_rate or config.learning_rate
    return Optimisers(
        tables=TABLE_OPTIMISERS[config.table_optimiser](rows, table_rate, config.weight_decay),
        dense=torch.optim.Adam(others, lr=config.learning_rate, fused=True),
    )


def seed_dropout(seed: int, epoch: int, rank: int) -> None:
    """Every worker drops other units, and a resumed run drops what an uninterrupted one would have."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def deterministic(strict: bool = True) -> Iterator[None]:
    """One thread and deterministic kernels, so that equal inputs give equal bits; torch is left as it was found.

    Not `strict`, torch's number of threads and its fastest kernels.
    """
    num_threads, was_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if strict:
        torch.set_num_threads(1)
    torch.use_deterministic_algorithms(strict)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(was_strict)
        torch.set_num_threads(num_threads)


def _nothing(line: str) -> None:
    pass


def epoch_line(state: TrainState, config: TrainConfig, rows_per_second: float) -> str:
    last = state.curves[-1]
    return (
        f"epoch {state.epoch}/{config.epochs}: training logloss {last['train_logloss']:.4f}, "
        f"validation AUC {last['validation_auc']:.4f}, {rows_per_second:,.0f} rows/s"
    )
