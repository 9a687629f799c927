"""CONTRIBUTING's recipes, followed word for word."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.schema import Schema
from narrowcast.components.search import registry
from narrowcast.components.search.run import SearchConfig, search_plan
from narrowcast.components.train import heads, histories
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.run import TrainConfig, train_full
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json

TEXT = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()


def block(heading: str, language: str) -> str:
    """The fenced block of `language` below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def added(tmp_path):
    """Load a recipe's code from a file, and forget what it registered afterwards."""
    registries = (heads.HEADS, histories.HISTORIES, registry.METHODS)
    known = [set(table) for table in registries]

    def load(heading: str) -> None:
        path = tmp_path / "recipe.py"
        path.write_text(block(heading, "python"))
        spec = importlib.util.spec_from_file_location(f"recipe_{len(heading)}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)

    yield load
    for table, before in zip(registries, known, strict=True):
        for key in set(table) - before:
            del table[key]


def test_add_a_data_set():
    schema = Schema.from_text(block("Add a data set", "yaml"))
    assert schema.feature_service.startswith("shop_")
    assert "history" in schema.input_names


def test_add_a_model(added, tiny_encoded, tmp_path):
    added("Add a model")
    config = TrainConfig(
        model=ModelConfig(backbone="pnn"), epochs=3, batch_size=128, learning_rate=0.01, num_workers=0, seed=0
    )
    train_full(str(tiny_encoded), config, str(tmp_path / "model"), width=8, inner_width=0)
    assert read_json(tmp_path / "model" / "metrics.json")["validation"]["auc"] > 0.6


def test_add_a_history_encoder(added, tiny_encoded, tmp_path):
    added("Add a history encoder")
    encoder = histories.build_history(histories.history_config("recent", {"half_life": 1}), 1)
    rows_BLD = torch.tensor([[[7.0], [14.0], [28.0], [99.0]], [[5.0], [99.0], [99.0], [99.0]], [[99.0]] * 4])
    valid_BL = torch.arange(4) < torch.tensor([[3], [1], [0]])
    token_BD = encoder(rows_BLD, valid_BL, torch.zeros(3, 1))
    torch.testing.assert_close(token_BD, torch.tensor([[1 + 4 + 16.0], [5.0], [0.0]]))  # shares 1/7, 2/7 and 4/7
    with pytest.raises(NarrowcastError, match=r"half_life is 0\.0: must be greater than 0"):
        ModelConfig(history="recent", history_settings={"half_life": 0})
    model = ModelConfig(history="recent", history_settings={"half_life": 3.0})
    config = TrainConfig(model=model, epochs=3, batch_size=128, learning_rate=0.01)
    train_full(str(tiny_encoded), config, str(tmp_path / "model"), width=8, inner_width=0)
    assert read_json(tmp_path / "model" / "metrics.json")["validation"]["auc"] > 0.6
    trained = load_checkpoint(tmp_path / "model")
    assert (type(trained.scorer.history).__name__, trained.scorer.history.half_life) == ("Recent", 3.0)


def test_add_a_search_method(added, tiny_encoded, tmp_path):
    added("Add a search method")
    config = SearchConfig(
        training=TrainConfig(batch_size=128, learning_rate=0.01),
        width=8,
        inner_width=0,
        method="uniform",
        budget="1/3",
        bits=8,
        num_trials=1,
        num_workers=0,
    )
    search_plan(str(tiny_encoded), config, str(tmp_path / "plan"))
    plan = Plan.load(tmp_path / "plan" / "plan.json")
    assert plan.stored_bytes() <= plan.full_bytes() / 3
    widths = {table.blocks[0].width for table in plan.tables.values()}
    assert len(widths) == 1
    assert set(plan.tables) == set(EncodedData(tiny_encoded).layout.table_rows)
