"""The training loop: the same in this process and in every Ray worker.

A step's batch belongs to all workers together: each computes the gradient of its share of the rows, and the shares'
gradients are summed, so the step is that of one worker on the whole batch up to rounding.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from narrowcast.components.data.encoded import Batch, EncodedData, Split
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.metrics import auc, logloss
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.state import TrainState
from narrowcast.components.train.workers import ALONE, Workers
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train. `batch_size` rows a step over all workers; `num_workers` 0 trains in this process without Ray.

    `weight_decay`: L2 penalty on the embedding tables' rows alone. Training ends after `epochs`, or after `patience`
    epochs without a better AUC on validation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 1e-3
    num_workers: int = 0
    seed: int = 0
    weight_decay: float = 1e-3
    patience: int = 2

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "num_workers": 0, "seed": 0, "patience": 1, "weight_decay": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise NarrowcastError(f"{name} is {getattr(self, name)}: must be at least {value}")
        if self.seed >= 2**32:
            raise NarrowcastError(f"seed is {self.seed}: must be less than 2^32")
        if not 0 < self.learning_rate < math.inf:
            raise NarrowcastError(f"learning_rate is {self.learning_rate}: must be a positive number")
        if self.num_workers > self.batch_size:
            raise NarrowcastError(
                f"batch_size is {self.batch_size}, less than a row for each of {self.num_workers} workers"
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
    if state is None:
        model = model or CTRModel(data.layout, plan, config.model, config.seed)
        state = TrainState(model=model, optimiser=adam(model, config))
    with deterministic():
        while state.epoch < config.epochs and state.epochs_since_best < config.patience:
            started = time.monotonic()
            train_logloss = train_epoch(state, train, config, workers)
            probability_B = predict_together(state.model, validation, workers)
            validation_logloss = logloss(validation.label_B, probability_B)
            demand_finite(validation_logloss, state, config)
            state.end_epoch(
                train_logloss=train_logloss,
                validation_auc=auc(validation.label_B, probability_B),
                validation_logloss=validation_logloss,
            )
            if workers.rank == 0:
                tell(epoch_line(state, config, len(train) / (time.monotonic() - started)))
            if on_epoch:
                on_epoch(state)
    state.restore_best()
    return state


def train_epoch(state: TrainState, split: Split, config: TrainConfig, workers: Workers = ALONE) -> float:
    """One pass over the rows in an order given by seed and epoch; the mean logloss of its steps."""
    model, parameters = state.model.train(), list(state.model.parameters())
    device = parameters[0].device
    seed_dropout(config.seed, state.epoch, workers.rank)
    total_loss = torch.zeros((), device=device, dtype=torch.float64)
    for batch, label_B, num_rows in shuffled_batches(split, config, state.epoch, workers):
        logit_B = model(*to_tensors(batch, device))
        target_B = torch.tensor(label_B, device=device, dtype=logit_B.dtype)
        loss = nn.functional.binary_cross_entropy_with_logits(logit_B, target_B, reduction="sum") / num_rows
        total_loss += loss.detach() * num_rows
        state.optimiser.zero_grad()
        loss.backward()
        workers.sum_gradients(parameters)
        state.optimiser.step()
    mean_loss = workers.sum(total_loss).item() / len(split)
    demand_finite(mean_loss, state, config)
    return mean_loss


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


def predict_together(model: nn.Module, split: Split, workers: Workers = ALONE) -> NDArray[np.float32]:
    """Probabilities of all rows, on every worker, each worker computing a stretch of them."""
    bounds = np.linspace(0, len(split), workers.size + 1).astype(int)
    mine = slice(bounds[workers.rank], bounds[workers.rank + 1])
    part = Split(
        inputs=split.inputs.take(mine),
        label_B=split.label_B[mine],
        row_id_B=split.row_id_B[mine],
        time_B=split.time_B[mine],
        group_B=split.group_B[mine],
    )
    return workers.concatenate(predict(model, part), np.diff(bounds).tolist())


def adam(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Adam over all parameters; only the embedding rows decay."""
    rows = [p for name, p in model.named_parameters() if name.endswith("weight_Rk")]
    others = [p for name, p in model.named_parameters() if not name.endswith("weight_Rk")]
    groups: list[dict[str, Any]] = [{"params": rows, "weight_decay": config.weight_decay}, {"params": others}]
    return torch.optim.Adam(groups, lr=config.learning_rate)


def seed_dropout(seed: int, epoch: int, rank: int) -> None:
    """Every worker drops other units, and a resumed run drops what an uninterrupted one would have."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """One thread and deterministic kernels, so that equal inputs give equal bits; torch is left as it was found."""
    num_threads, was_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(was_strict)
        torch.set_num_threads(num_threads)


def epoch_line(state: TrainState, config: TrainConfig, rows_per_second: float) -> str:
    last = state.curves[-1]
    return (
        f"epoch {state.epoch}/{config.epochs}: training logloss {last['train_logloss']:.4f}, "
        f"validation AUC {last['validation_auc']:.4f}, {rows_per_second:,.0f} rows/s"
    )
