"""The packed model: its file's weight, its scores beside the trained model's, and what a changed byte does."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from narrowcast.components.compact.pack import data_bytes, pack
from narrowcast.components.compact.packed import PackedModel, read_manifest
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.forms import QR, Codebook, Hash
from narrowcast.components.train.metrics import logloss
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.predict import predict
from narrowcast.components.train.run import TrainConfig, train_from_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json

WIDTH = 8


def block_plan(rows: dict[str, int], bits: int, inner_width: int | None = None) -> Plan:
    """Gaps in the columns of frequent rows, a narrow prefix for the others, and the rarest dropped."""
    tables = {}
    for name, n in rows.items():
        head, kept = max(1, n // 2), max(1, n - 2)
        blocks = [Block(start=0, stop=head, columns=(0, 2, 3, 7), bits=bits)]
        if kept > head:
            blocks.append(Block(start=head, stop=kept, columns=(0, 1, 2), bits=bits))
        tables[name] = TablePlan(rows=n, blocks=tuple(blocks), inner_width=inner_width)
    return Plan(width=WIDTH, tables=tables, method="test")


def lifted_plan(rows: dict[str, int]) -> Plan:
    tables = {
        name: TablePlan(rows=n, blocks=(Block(start=0, stop=n, columns=(0, 1)),), projection=2)
        for name, n in rows.items()
    }
    return Plan(width=WIDTH, tables=tables, method="test")


def shared_plan(rows: dict[str, int], form: type, bits: int) -> Plan:
    """Hot ids private, the tail shared or coded, where a table is large enough."""
    columns, tables = tuple(range(WIDTH)), {}
    make = {
        Hash: lambda tail: Hash(buckets=tail // 3),
        QR: lambda tail: QR(remainders=tail // 3),
        Codebook: lambda tail: Codebook(groups=2, centroids=tail // 3),
    }[form]
    for name, n in rows.items():
        hot = n // 3
        blocks = [Block(start=0, stop=n if n < 15 else hot, columns=columns, bits=bits)]
        if n >= 15:
            blocks.append(Block(start=hot, stop=n, columns=columns, bits=bits, form=make(n - hot)))
        tables[name] = TablePlan(rows=n, blocks=tuple(blocks))
    return Plan(width=WIDTH, tables=tables, method="test")


PLANS = {
    "float32": lambda rows: block_plan(rows, 32),
    "float32 with MLET": lambda rows: block_plan(rows, 32, inner_width=24),
    "int8": lambda rows: block_plan(rows, 8),
    "int4 with MLET": lambda rows: block_plan(rows, 4, inner_width=24),
    "projections": lifted_plan,
    "float16": lambda rows: block_plan(rows, 16),
    "hash": lambda rows: shared_plan(rows, Hash, 32),
    "quotient-remainder, int8": lambda rows: shared_plan(rows, QR, 8),
    "codebook": lambda rows: shared_plan(rows, Codebook, 16),
    "int8, aware": lambda rows: block_plan(rows, 8),
    "int4 with MLET, aware": lambda rows: block_plan(rows, 4, inner_width=24),
    "hash of 2 bits, aware": lambda rows: shared_plan(rows, Hash, 2),
}
LOSSLESS = ("float32", "projections", "hash")
"""Bit by bit."""


@pytest.fixture(scope="module")
def packed(tiny_encoded, tiny_frame, tiny_schema, tmp_path_factory) -> dict[str, Path]:
    """The folders `<plan>/checkpoint` and `<plan>/packed` by plan."""
    folders = {}
    rows = EncodedData(tiny_encoded).layout.table_rows
    for name, make in PLANS.items():
        folder = tmp_path_factory.mktemp("pack")
        (folder / "plan").mkdir()
        make(rows).save(folder / "plan" / "plan.json")
        training = TrainConfig(epochs=1, batch_size=64, num_workers=0, quantisation_aware="aware" in name)
        train_from_plan(tiny_encoded, folder / "plan", training, folder / "checkpoint")
        pack(folder / "checkpoint", tiny_encoded, tiny_frame, tiny_schema, folder / "packed")
        folders[name] = folder
    return folders


@pytest.mark.parametrize("name", PLANS)
def test_file_weighs_what_the_plan_says(packed, name):
    folder = packed[name] / "packed"
    stored = Plan.load(folder / "plan.json").stored_bytes()
    assert data_bytes(folder / "tables.safetensors") == stored == read_manifest(folder)["plan_bytes"]


@pytest.mark.parametrize("name", PLANS)
def test_scores_are_the_trained_models_within_the_bound(packed, tiny_encoded, name):
    test = EncodedData(tiny_encoded).split("test")
    trained = predict(load_checkpoint(packed[name] / "checkpoint"), test)
    model = PackedModel.load(packed[name] / "packed")
    scores = model.batch_scores(test.inputs.take(slice(None)))
    difference, parity = float(np.abs(trained - scores).max()), read_manifest(packed[name] / "packed")["parity"]
    assert difference <= parity["bound"]
    assert parity["max_difference"] <= parity["bound"]
    if name in LOSSLESS:
        assert difference == parity["max_difference"] == 0.0
    elif name == "float32 with MLET" or "aware" in name:
        assert parity["bound"] == 1e-6
    else:
        assert 0 < parity["max_difference"] < 0.05


@pytest.mark.parametrize("name", [name for name in PLANS if "aware" in name])
def test_what_was_trained_aware_of_rounding_is_what_was_evaluated_and_is_served(packed, tiny_encoded, name):
    """The retraining's own figures, the checkpoint's scores and the packed model's."""
    data = EncodedData(tiny_encoded)
    model = load_checkpoint(packed[name] / "checkpoint")
    assert model.embedding.rounds
    test = data.split("test")
    scores = PackedModel.load(packed[name] / "packed").batch_scores(test.inputs.take(slice(None)))
    written = read_json(packed[name] / "checkpoint" / "metrics.json")["test"]
    assert logloss(test.label_B, scores) == pytest.approx(written["logloss"], abs=1e-6)
    np.testing.assert_allclose(scores, predict(model, test), rtol=0, atol=1e-6)
    model.embedding.round_rows(False)
    assert np.abs(scores - predict(model, test)).max() > 1e-6  # there is something to round


def test_raw_values_score_as_the_encoded_rows(packed, tiny_encoded, tiny_frame, tiny_schema):
    model = PackedModel.load(packed["int8"] / "packed")
    frame = pd.read_parquet(tiny_frame / "frame.parquet")
    rows = frame[frame["split"] == "test"].set_index("row_id")
    test = EncodedData(tiny_encoded).split("test")
    rows = rows.loc[np.asarray(test.row_id_B)]
    scores = model.score({name: rows[name] for name in tiny_schema.input_names})
    np.testing.assert_array_equal(scores, model.batch_scores(test.inputs.take(slice(None))))


def test_sample_request_gives_every_input_and_expects_its_scores(packed, tiny_schema):
    folder = packed["int8"] / "packed"
    sample = read_json(folder / "sample_request.json")
    inputs = {tensor["name"]: tensor for tensor in sample["request"]["inputs"]}
    assert set(inputs) == set(tiny_schema.input_names)
    num_candidates = inputs["item_id"]["shape"][0]
    assert num_candidates == len(sample["expected"]) == 10
    for field in tiny_schema.inputs:
        tensor = inputs[field.name]
        assert tensor["shape"] == [num_candidates if field.owner == "item" else 1] == [len(tensor["data"])]
        assert tensor["datatype"] == ("FP64" if field.type == "numeric" else "BYTES")
    assert len(set(inputs["item_id"]["data"])) == num_candidates


def test_two_packs_are_equal_to_the_byte(packed, tiny_encoded, tiny_frame, tiny_schema, tmp_path):
    pack(packed["int8"] / "checkpoint", tiny_encoded, tiny_frame, tiny_schema, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(packed["int8"] / "packed")


def test_record_names_the_bytes(packed):
    record = StepRecord.load(packed["int8"] / "packed")
    assert record.metrics["stored_bytes"] == read_manifest(packed["int8"] / "packed")["plan_bytes"]
    assert record.rows_in == record.rows_out > 0


@pytest.mark.parametrize("name", ["tables.safetensors", "weights.safetensors", "encoder/encoder.json", "schema.yaml"])
def test_a_changed_byte_is_one_sentence(packed, tmp_path, name):
    copy = tmp_path / "packed"
    shutil.copytree(packed["int8"] / "packed", copy)
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(NarrowcastError, match=f"'{name}' .* is not the file that was packed"):
        PackedModel.load(copy)
    (copy / name).unlink()
    with pytest.raises(NarrowcastError, match=f"lacks '{name}'"):
        PackedModel.load(copy)


@pytest.mark.parametrize("text", [b"\xff\xfe", b'{"format": 2}', b'{"format": 1, "md5": {}}'])
def test_a_manifest_that_is_none_says_so(text, tmp_path):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(NarrowcastError, match=str(tmp_path)):
        PackedModel.load(tmp_path)


def test_a_folder_without_manifest_says_so(tmp_path):
    with pytest.raises(NarrowcastError, match=r"manifest\.json does not exist"):
        PackedModel.load(tmp_path)


def test_nothing_is_left_when_packing_fails(packed, tiny_encoded, tiny_schema, tmp_path):
    (tmp_path / "frame").mkdir()
    (tmp_path / "frame" / "frame.parquet").write_bytes(b"no parquet")
    with pytest.raises(NarrowcastError, match=r"frame\.parquet"):
        pack(packed["int8"] / "checkpoint", tiny_encoded, tmp_path / "frame", tiny_schema, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_checkpoint_of_other_data_is_refused(packed, tiny_encoded, tiny_frame, tiny_schema, tmp_path):
    other = tmp_path / "encoded"
    shutil.copytree(tiny_encoded, other)
    layout = (other / "layout.json").read_text().replace('"price"', '"prize"')
    (other / "layout.json").write_text(layout)
    with pytest.raises(NarrowcastError, match="trained on other data"):
        pack(packed["int8"] / "checkpoint", other, tiny_frame, tiny_schema, tmp_path / "packed")
