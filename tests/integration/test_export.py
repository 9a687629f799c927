"""What is exported, in ONNX Runtime: tables of every form, every backbone with every history, and a whole export."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import pandas as pd
import pytest
import torch
from torch import nn

import narrowcast
from narrowcast.components.compact import graph_file
from narrowcast.components.compact.export import random_batch, snippet
from narrowcast.components.compact.graph import GraphNetwork
from narrowcast.components.compact.graph_file import to_onnx, write_graph
from narrowcast.components.compact.graph_table import GraphTable
from narrowcast.components.compact.onnx_model import OnnxModel, feeds, new_session
from narrowcast.components.compact.pack import data_bytes, pack
from narrowcast.components.compact.packed import PackedModel, PackedNetwork
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.data.encoded import EncodedData, Layout
from narrowcast.components.train.checkpoint import save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.forms import QR, Codebook, Hash
from narrowcast.components.train.heads import backbones
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.scorer import seeded_scorer
from narrowcast.components.train.tables import TableGroup
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json

ANY = torch.export.Dim.DYNAMIC
WIDTH = 7
LENGTHS = {"tags": 3, "history": 5}
FORMS = [
    (32, None),
    (16, QR(remainders=5, combine="concatenate")),
    (8, None),
    (8, Hash(buckets=7)),
    (4, QR(remainders=5, combine="multiply")),
    (2, QR(remainders=5, combine="add")),
    (16, Codebook(groups=3, centroids=16)),
    (32, Codebook(groups=3, centroids=20)),
]


def tensors_of(model: CTRModel) -> dict[str, torch.Tensor]:
    tables = model.embedding.tables.items()
    return {f"{name}.{key}": value for name, table in tables for key, value in table_tensors(table).items()}


class Tables(nn.Module):
    def __init__(self, tables: list[GraphTable]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(tables)

    def forward(self, ids_n: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table(ids_n) for table in self.tables)


def test_tables_of_every_form_are_bit_equal(tmp_path):
    """Each in a second block, after one of private rows in columns that are no prefix."""
    plans = []
    for bits, form in FORMS:
        head = Block(start=0, stop=4, columns=(0, 2, 5), bits=bits)
        tail = Block(start=4, stop=34, columns=(0, 1, 2, 3, 4, 5), bits=bits, form=form)
        plans.append(TablePlan(rows=36, blocks=(head, tail)))
    plans.append(TablePlan(rows=36, blocks=(Block(start=0, stop=34, columns=()),)))
    plans.append(TablePlan(rows=36, blocks=(Block(start=0, stop=34, columns=(0, 1, 2), bits=4),), projection=3))
    generators = [torch.Generator().manual_seed(i) for i in range(len(plans))]
    stored = [table_tensors(TableGroup([p], WIDTH, [g], 0.1).tables[0]) for p, g in zip(plans, generators, strict=True)]
    graph = Tables([GraphTable(plan, WIDTH, tensors) for plan, tensors in zip(plans, stored, strict=True)])
    names = [f"rows_{i}" for i in range(len(plans))]
    onnx_ir.save(to_onnx(graph, (torch.zeros(3).long(),), ({0: ANY},), ["ids"], names), tmp_path / "tables.onnx")
    ids = np.arange(-2, 40)
    found = new_session(tmp_path / "tables.onnx").run(names, {"ids": ids})
    for plan, tensors, rows in zip(plans, stored, found, strict=True):
        expected = PackedTable(plan, WIDTH, tensors)(torch.from_numpy(ids).clamp(min=0)).numpy()
        # A projection's sums may be in another order.
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-7 if plan.projection else 0.0)


class Pairs(nn.Module):
    """Every head on the tokens of every history encoder: heads x (encoders B) probabilities.

    Encoders' tokens lie one after another in the batch, which no head can tell, so that each is traced but once.
    """

    def __init__(self, networks: list[GraphNetwork], heads: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.heads = nn.ModuleList(heads)

    def forward(self, ids_BF: torch.Tensor, dense_BN: torch.Tensor, sequences: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = torch.cat([network.tokens(ids_BF, sequences) for network in self.networks])
        dense = dense_BN.repeat(len(self.networks), 1)
        return torch.stack([head(tokens, dense).sigmoid() for head in self.heads])


def model_of(layout: Layout, bits: int = 8, columns: int = WIDTH, **settings) -> CTRModel:
    """Of random values, with the rarest rows of every table dropped."""
    tables = {
        name: TablePlan(rows=rows, blocks=(Block(start=0, stop=rows - 2, columns=tuple(range(columns)), bits=bits),))
        for name, rows in layout.table_rows.items()
    }
    config = ModelConfig(hidden=(8,), init_std=0.3, **settings)
    return CTRModel(layout, Plan(width=WIDTH, tables=tables), config, seed=0).eval()


def test_every_backbone_with_every_history_scores_as_packed(tmp_path):
    layout = Layout(
        categorical=("user", "item"),
        numeric=("age", "price"),
        sequences=("tags", "history"),
        table_of={"user": "user", "item": "item", "tags": "tags", "history": "item"},
        table_rows={"user": 30, "item": 40, "tags": 12},
    )
    model = model_of(layout)
    tensors = tensors_of(model)
    scorers = {
        (backbone, history): seeded_scorer(layout, WIDTH, ModelConfig(backbone=backbone, history=history), seed=1)
        for backbone in backbones()
        for history in histories()
    }
    for (_, history), scorer in scorers.items():  # each encoder and each head but once in the graph
        scorer.history = scorers["fm", history].history
    graphs = [GraphNetwork(layout, model.plan, scorers["fm", history], tensors) for history in histories()]
    pairs = Pairs(graphs, [scorers[backbone, "none"].head for backbone in backbones()])
    inputs = torch.zeros(6, 2).long(), torch.zeros(6, 2), {name: torch.zeros(3, 4).long() for name in LENGTHS}
    sizes = ({0: ANY}, {0: ANY}, {name: {0: ANY, 1: ANY} for name in LENGTHS})
    names = ["ids", "dense", *(f"sequence_{name}" for name in LENGTHS)]
    made = to_onnx(pairs, inputs, sizes, names, ["probability"])
    assert {node.domain for node in made.graph} == {""}
    onnx_ir.save(made, tmp_path / "pairs.onnx")
    session = new_session(tmp_path / "pairs.onnx")
    rng = np.random.default_rng(0)
    for num_rows, num_histories in ((1, 1), (50, 1), (50, 50)):
        batch = random_batch(layout, LENGTHS, num_rows, num_histories, rng)
        found = session.run(["probability"], feeds(batch))[0].reshape(len(backbones()), len(histories()), num_rows)
        for i, backbone in enumerate(backbones()):
            for j, history in enumerate(histories()):
                packed = PackedNetwork(layout, model.plan, scorers[backbone, history], tensors).eval()
                with torch.no_grad():
                    expected = packed(*to_tensors(batch)).sigmoid().numpy()
                np.testing.assert_allclose(found[i, j], expected, rtol=0, atol=1e-6, err_msg=f"{backbone}, {history}")


LARGE = Layout(categorical=("item",), numeric=(), sequences=(), table_of={"item": "item"}, table_rows={"item": 50_000})


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[CTRModel, GraphNetwork, Path]:
    """A model of one large int4 table, its graph, and that graph's file."""
    model = model_of(LARGE, bits=4, backbone="lr")
    graph = GraphNetwork(LARGE, model.plan, model.scorer, tensors_of(model))
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    write_graph(graph, path)
    return model, graph, path


def test_no_table_is_expanded_in_the_file(large):
    model, _, path = large
    assert model.plan.stored_bytes() < path.stat().st_size < model.plan.stored_bytes() + 20_000


def test_equal_models_give_equal_files_without_this_machines_names(large, tmp_path):
    _, graph, path = large
    write_graph(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert str(Path(narrowcast.__file__).parent).encode() not in path.read_bytes()


def test_large_weights_lie_beside_the_graph(large, tmp_path, monkeypatch):
    _, graph, path = large
    monkeypatch.setattr(graph_file, "INLINE_BYTES", 1000)
    write_graph(graph, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 20_000
    batch = feeds(random_batch(LARGE, {}, 50, 1, np.random.default_rng(0)))
    one, other = (new_session(file).run(None, batch)[0] for file in (path, tmp_path / "model.onnx"))
    np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def tiny(tiny_encoded, tiny_frame, tiny_schema, tmp_path_factory) -> tuple[Path, Path, str]:
    """A packed model of random values, what `narrowcast export` made of it, and what that printed."""
    folder = tmp_path_factory.mktemp("tiny")
    model = model_of(EncodedData(tiny_encoded).layout, bits=4, columns=5, history="append")
    save_checkpoint(folder / "checkpoint", model)
    pack(folder / "checkpoint", tiny_encoded, tiny_frame, tiny_schema, folder / "packed")
    command = ["export", str(folder / "packed"), "--out", str(folder / "exported")]
    done = subprocess.run(
        [sys.executable, "-m", "narrowcast.pipelines.cli", *command],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return folder / "packed", folder / "exported", done.stdout


def test_an_exported_model_scores_raw_values_as_the_packed_one(tiny, tiny_frame, tiny_schema):
    packed, exported, _ = tiny
    rows = pd.read_parquet(tiny_frame / "frame.parquet").head(200)
    columns = {name: list(rows[name]) for name in tiny_schema.input_names}
    parity = read_json(exported / "manifest.json")["parity"]
    assert parity["max_difference"] <= parity["bound"] == 1e-6
    model, reference = OnnxModel.load(exported, threads=1), PackedModel.load(packed)
    np.testing.assert_allclose(model.score(columns), reference.score(columns), rtol=0, atol=1e-6)
    one_user = {f.name: [columns[f.name][9]] if f.owner == "user" else columns[f.name] for f in tiny_schema.inputs}
    np.testing.assert_allclose(model.score(one_user), reference.score(one_user), rtol=0, atol=1e-6)


def test_the_manifest_says_what_the_graph_takes(tiny):
    packed, exported, _ = tiny
    said = read_json(exported / "manifest.json")
    session = OnnxModel.load(exported).session
    assert [entry["name"] for entry in said["inputs"]] == [value.name for value in session.get_inputs()]
    assert [entry["name"] for entry in said["outputs"]] == [value.name for value in session.get_outputs()]
    graph = onnx_ir.load(exported / "model.onnx")
    assert said["opset"] == {"ai.onnx": graph.opset_imports[""]}
    assert {node.domain for node in graph.graph} == {""}
    assert said["table_bytes"] == data_bytes(packed / "tables.safetensors")
    assert said["graph_bytes"] == (exported / "model.onnx").stat().st_size


def test_the_command_prints_lines_that_score(tiny):
    _, exported, printed = tiny
    lines = snippet(exported)
    assert lines in printed
    assert len(lines.splitlines()) == 6
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    probabilities = json.loads(",".join(done.stdout.split()).replace("[,", "["))
    assert len(probabilities) == 3
    assert all(0 < probability < 1 for probability in probabilities)


def test_a_changed_file_is_refused(tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "exported")
    layout = tmp_path / "exported" / "layout.json"
    layout.write_text(layout.read_text() + " ")
    with pytest.raises(NarrowcastError, match=r"'layout\.json' of the exported model"):
        OnnxModel.load(tmp_path / "exported")
