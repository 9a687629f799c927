"""The graph that is exported, run by torch: equal to the packed model for every form of table, backbone and history."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.compact.export import export, random_batch
from narrowcast.components.compact.graph import GraphNetwork
from narrowcast.components.compact.graph_table import GraphTable
from narrowcast.components.compact.onnx_model import OnnxModel
from narrowcast.components.compact.packed import PackedNetwork
from narrowcast.components.compact.packed_table import PackedTable, table_tensors
from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.forms import FORMS as FORM_KINDS
from narrowcast.components.train.forms import QR, Codebook, Hash
from narrowcast.components.train.heads import backbones
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import BITS, Block, Plan, TablePlan
from narrowcast.components.train.tables import TableGroup
from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.manifest import Run, artifact_folder

FORMS = (None, Hash(buckets=3), *(QR(remainders=3, combine=c) for c in ("multiply", "add", "concatenate")))
WIDTH = 6
ROWS = {"user": 30, "item": 40, "tags": 12}
LENGTHS = {"tags": 3, "history": 5}


@st.composite
def tables(draw) -> tuple[TablePlan, int]:
    """Any plan of one table, and the model's width."""
    width = draw(st.integers(2, 9))
    projection = draw(st.none() | st.integers(2, 5))
    blocks, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        form = draw(st.sampled_from(FORMS) | st.builds(Codebook, groups=st.just(2), centroids=st.integers(2, 20)))
        stop = start + draw(st.integers(22, 30) if form else st.integers(1, 6))
        columns = sorted(draw(st.sets(st.integers(0, (projection or width) - 1), min_size=2 if form else 0)))
        if isinstance(form, Codebook):
            columns = columns[: len(columns) // 2 * 2]
        bits = draw(st.sampled_from((32, 16) if isinstance(form, Codebook) else BITS))
        blocks.append(Block(start=start, stop=stop, columns=tuple(columns), bits=bits, form=form))
        start = stop
    return TablePlan(rows=start + draw(st.integers(0, 5)), blocks=tuple(blocks), projection=projection), width


@settings(deadline=None, max_examples=40)
@given(tables())
def test_any_table_gives_the_packed_tables_rows(drawn):
    plan, width = drawn
    tensors = table_tensors(TableGroup([plan], width, [torch.Generator().manual_seed(1)], 0.1).tables[0])
    ids = torch.arange(plan.rows + 3).repeat(2).view(2, -1)
    found = GraphTable(plan, width, tensors)(ids)
    assert torch.equal(found, PackedTable(plan, width, tensors)(ids))
    assert torch.equal(GraphTable(plan, width, tensors)(torch.tensor([-1, -9])), found[0, [0, 0]])


def test_the_page_names_every_form_and_its_bits():
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert any(f"bits {', '.join(map(str, BITS))}" in row for row in rows)
    for kind in FORM_KINDS:
        assert any(row.startswith(f"| `{kind}`") for row in rows)


def networks(layout: Layout, **settings: str) -> tuple[PackedNetwork, GraphNetwork]:
    """A model of random values, packed and as a graph; each table has two blocks and drops its rarest rows."""
    plans = {}
    for name, rows in layout.table_rows.items():
        head = Block(start=0, stop=rows // 3, columns=tuple(range(WIDTH)), bits=8)
        tail = Block(start=rows // 3, stop=rows - 2, columns=(0, 1, 4), bits=4)
        plans[name] = TablePlan(rows=rows, blocks=(head, tail))
    plan = Plan(width=WIDTH, tables=plans)
    model = CTRModel(layout, plan, ModelConfig(hidden=(8,), init_std=0.3, **settings), seed=0).eval()
    tensors = {
        f"{name}.{key}": tensor
        for name, table in model.embedding.tables.items()
        for key, tensor in table_tensors(table).items()
    }
    return PackedNetwork(layout, plan, model.scorer, tensors), GraphNetwork(layout, plan, model.scorer, tensors)


def layout_of(*, categorical=("user", "item"), numeric=("age", "price"), sequences=("tags", "history")) -> Layout:
    table_of = {name: {"history": "item"}.get(name, name) for name in (*categorical, *sequences)}
    return Layout(
        categorical=categorical,
        numeric=numeric,
        sequences=sequences,
        table_of=table_of,
        table_rows={name: ROWS[name] for name in dict.fromkeys(table_of.values())},
    )


@torch.no_grad()
def check(packed: PackedNetwork, graph: GraphNetwork, layout: Layout) -> None:
    rng = np.random.default_rng(0)
    for num_rows, num_histories in ((1, 1), (7, 1), (7, 7)):
        batch = random_batch(layout, LENGTHS, num_rows, num_histories, rng)
        ids_BF, dense_BN, sequences = to_tensors(batch)
        found = graph(ids_BF.long(), dense_BN, {name: ids_SL.long() for name, ids_SL in sequences.items()})
        assert found.shape == (num_rows,)
        torch.testing.assert_close(found, packed(ids_BF, dense_BN, sequences).sigmoid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("history", histories())
@pytest.mark.parametrize("backbone", backbones())
def test_every_backbone_with_every_history_scores_as_packed(backbone, history):
    check(*networks(layout_of(), backbone=backbone, history=history), layout_of())


@pytest.mark.parametrize("absent", ["categorical", "numeric", "sequences"])
def test_a_model_may_lack_a_kind_of_input(absent):
    layout = layout_of(**{absent: (), **({"sequences": ("tags",)} if absent == "categorical" else {})})
    check(*networks(layout), layout)


def test_a_library_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(NarrowcastError, match=r"onnxscript is not installed.*narrowcast\[onnx\]"):
        export(tmp_path, tmp_path / "out")


def test_nothing_but_an_exported_model_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NarrowcastError, match="is no exported model"):
        export(tmp_path / "packed", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["[]", '{"format": 1}', '{"format": 1, "md5": {}}', '{"format": 0, "md5": {}}'])
def test_a_folder_that_holds_no_exported_model_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(NarrowcastError, match="is no exported model of format 1"):
        OnnxModel.load(tmp_path)


def test_scoring_needs_no_torch():
    code = "import sys, narrowcast.components.compact.onnx_model; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_without_the_artifact_is_refused(tmp_path):
    values = dict.fromkeys(("error", "lock", "seconds", "git_commit", "code", "data_version"))
    folders = {"encoded": {"path": "artifacts/encoded", "md5": ""}}
    empty = {key: {} for key in ("parameters", "machine", "steps", "metrics")}
    run = Run(run_id="a", status="failed", started="now", artifacts=folders, **values, **empty)
    run.save(tmp_path / "runs" / "a" / "run.json")
    assert artifact_folder("latest", "encoded", tmp_path) == tmp_path / "artifacts" / "encoded"
    with pytest.raises(NarrowcastError, match="did not come as far as its packed_model"):
        artifact_folder("a", "packed_model", tmp_path)
