"""What the training steps do: train, measure, and write the checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.checkpoint import save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, deterministic, fit
from narrowcast.components.train.metrics import all_metrics
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Plan, full_plan
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, writing_directory
from narrowcast.settings import build


def train_config(backbone: str, model: dict[str, Any], training: dict[str, Any], **settings: Any) -> TrainConfig:
    """A step's parameters as one config; `model` and `training` hold what the others leave out.

    Raises NarrowcastError for a key that is unknown or has a parameter of its own.
    """
    for name, values, own in (("model", model, {"backbone"}), ("training", training, {"model", *settings})):
        for key in own & values.keys():
            raise NarrowcastError(f"parameter '{name}': '{key}' is a parameter of its own; set it there")
    built = ModelConfig.from_json({"backbone": backbone, **model}, "parameter 'model'")
    return replace(cast(TrainConfig, build(TrainConfig, {**training, **settings}, "parameter 'training'")), model=built)


def train_full(encoded: str | Path, config: TrainConfig, target: str | Path, *, width: int, inner_width: int) -> None:
    """Train the uncompressed model: every row of every table, `width` float32 values; `inner_width` 0 for plain tables.

    Writes the checkpoint to `target`. Raises NarrowcastError for data that cannot be trained on and for a failing Ray.
    """
    data = EncodedData(encoded)
    plan = full_plan(data.layout.table_rows, width, inner_width=inner_width or None)
    _train("train", data, plan, config, target)


def train_from_plan(encoded: str | Path, plan_directory: str | Path, config: TrainConfig, target: str | Path) -> None:
    """Train a model from its initial values on the tables of the plan in `plan_directory`; else as `train_full`.

    Tables that TorchRec has no like of are trained whole on every worker, whatever `config.tables` is.
    """
    plan = Plan.load(Path(plan_directory) / "plan.json")
    if config.tables == "torchrec" and not all(table.is_plain(plan.width) for table in plan.tables.values()):
        print(
            "the plan's tables have columns left out, shared rows or a projection: every worker has the whole of them"
        )
        config = replace(config, tables="local")
    _train("retrain", EncodedData(encoded), plan, config, target)


def _train(step: str, data: EncodedData, plan: Plan, config: TrainConfig, target: str | Path) -> None:
    if config.num_workers:
        from narrowcast.components.train.ray_train import ray_fit

        state = ray_fit(data, plan, config)
    elif config.tables == "torchrec":
        raise NarrowcastError("tables is torchrec, which spreads them over workers: set num_workers to at least 1")
    else:
        state = fit(data, plan, config)
    model = state.model
    assert isinstance(model, CTRModel)
    metrics: dict[str, Any] = {
        "curves": state.curves,
        "best_epoch": state.best_epoch,
        "stored_bytes": plan.stored_bytes(),
        "full_bytes": plan.full_bytes(),
        "resumed_from_epoch": state.resumed_from_epoch,
    }
    with deterministic():
        for name in ("validation", "test"):
            split = data.split(name)
            metrics[name] = all_metrics(split.label_B, predict(model, split), split.group_B)
    num_rows = len(data.split("train"))
    record = StepRecord(
        step=step,
        rows_in=num_rows,
        rows_out=num_rows,
        metrics={
            **{f"test_{key}": value for key, value in metrics["test"].items()},
            **{f"validation_{key}": value for key, value in metrics["validation"].items()},
            "best_epoch": state.best_epoch,
            "stored_bytes": plan.stored_bytes(),
        },
        details={"curves": state.curves},
    )
    with writing_directory(target) as directory:
        save_checkpoint(directory, model, metrics)
        record.save(directory)
    print(f"best epoch {state.best_epoch}: test AUC {metrics['test']['auc']:.4f}, tables {plan.stored_bytes():,} bytes")
