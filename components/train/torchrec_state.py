"""A training whose tables lie spread over the workers: begun, saved as an ordinary one, and gone on with.

What is saved is the state of an ordinary training with row-wise Adagrad on whole tables. So nothing that reads it knows
of shards, and other workers, more or fewer, can go on from it.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.fit import TrainConfig, fresh_state
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.optimisers import Optimisers
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.state import TENSORS, TrainState
from narrowcast.components.train.torchrec_tables import ROW_WISE_FROM, SHARD, WHOLE, ShardedModel

SUMS = "tables.0.sum"
"""All accumulators among the tensors of an ordinary training's optimisers."""


def sharded_state(
    layout: Layout,
    plan: Plan,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    row_wise_from: int = ROW_WISE_FROM,
) -> TrainState:
    """Before the first step of `fit`; every worker calls this. Raises NarrowcastError for a plan as `ShardedModel`."""
    model = ShardedModel(
        layout,
        plan,
        config.model,
        config.seed,
        learning_rate=config.table_learning_rate or config.learning_rate,
        weight_decay=config.weight_decay,
        device=device,
        row_wise_from=row_wise_from,
    )
    dense = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    optimisers = Optimisers(tables=model.row_optimiser, dense=dense)  # type: ignore[arg-type]
    return TrainState(model=model, optimisers=optimisers, precision=config.precision)


def gathered_state(state: TrainState, config: TrainConfig) -> TrainState | None:
    """The ordinary training at this point, for the first worker; None for the others, who must call this too."""
    model = _sharded(state)
    values, best_values = model.gathered_values(model.state_dict()), model.gathered_values(state.best_values)
    sums_R = model.gathered_rows(model.row_optimiser.sums())
    if values is None or best_values is None or sums_R is None:
        return None
    whole = fresh_state(CTRModel(model.layout, model.plan, model.config, model.seed), config)
    whole.model.load_state_dict(values)
    dense = {name: value for name, value in state.optimisers.tensors().items() if name.startswith("dense.")}
    whole.optimisers.load_tensors({SUMS: sums_R, **dense})
    whole.precision, whole.curves, whole.best_values = state.precision, state.curves, best_values
    whole.resumed_from_epoch = state.resumed_from_epoch
    return whole


def load_shards(state: TrainState, directory: Path) -> None:
    """Take on what an ordinary training saved; of the tables, only this worker's rows are read."""
    model, sums = _sharded(state), _sharded(state).row_optimiser.sums()
    state.load_progress(directory)
    with safe_open(directory / TENSORS, "pt") as file:

        def rows(name: str, table: str, number: int) -> Tensor:
            first = model.first_row[table]
            found: Tensor = file.get_slice(name)[first : first + number]
            return found

        def values(kind: str) -> dict[str, Tensor]:
            return {
                name: rows(kind + WHOLE, name.removeprefix(SHARD), len(value))
                if name.startswith(SHARD)
                else file.get_tensor(kind + name)
                for name, value in model.state_dict().items()
            }

        model.load_state_dict(values("model."))
        state.best_values = values("best.")
        tensors = {
            f"tables.{i}.sum": rows(f"optimisers.{SUMS}", table, len(sum_r))
            for i, (table, sum_r) in enumerate(sums.items())
        }
        dense = [name for name in file.keys() if name.startswith("optimisers.dense.")]  # noqa: SIM118
        tensors |= {name.removeprefix("optimisers."): file.get_tensor(name) for name in dense}
        state.optimisers.load_tensors(tensors)


def _sharded(state: TrainState) -> ShardedModel:
    assert isinstance(state.model, ShardedModel)
    return state.model
