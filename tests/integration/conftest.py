"""A tiny trained, searched-by-hand and packed model with its feature store, made once a session."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from narrowcast.components.compact.pack import pack
from narrowcast.components.data.encode import encode
from narrowcast.components.features.build import build_features
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.run import train_from_plan, train_full
from narrowcast.records import write_json


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """Folders of one run's artifacts, by the names of the pipeline."""

    frame: Path
    feature_store: Path
    encoded: Path
    full_model: Path
    plan: Path
    compact_model: Path
    packed_model: Path


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset, tiny_schema, tmp_path_factory) -> Artifacts:
    """8-bit tables of half the columns; two epochs."""
    folder = tmp_path_factory.mktemp("run")
    made = Artifacts(**{name: folder / name for name in Artifacts.__annotations__})
    config = TrainConfig(epochs=2, batch_size=256)
    build_features(tiny_dataset, tiny_schema, 0, made.frame, made.feature_store)
    encode(made.frame, tiny_schema, made.encoded)
    train_full(made.encoded, config, made.full_model, width=8, inner_width=0)
    full = Plan.load(made.full_model / "plan.json")
    tables = {
        name: TablePlan(rows=table.rows, blocks=(Block(start=0, stop=table.rows, columns=(0, 1, 2, 3), bits=8),))
        for name, table in full.tables.items()
    }
    plan = Plan(width=8, tables=tables, method="by hand")
    plan.save(made.plan / "plan.json")
    write_json(made.plan / "search.json", {"budget_bytes": plan.stored_bytes()})
    train_from_plan(made.encoded, made.plan, config, made.compact_model)
    pack(made.compact_model, made.encoded, made.frame, tiny_schema, made.packed_model)
    return made
