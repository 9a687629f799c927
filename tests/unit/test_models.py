"""The heads against plain references, the model's seeds, and checkpoints."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.train.checkpoint import load_checkpoint, save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.heads import HEADS, backbones, build_head, head_config, register
from narrowcast.components.train.heads.fm import pairwise_products
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest

LAYOUT = Layout(
    categorical=("user_id", "item_id"),
    numeric=("age", "price"),
    sequences=("history",),
    table_of={"user_id": "user_id", "item_id": "item_id", "history": "item_id"},
    table_rows={"user_id": 9, "item_id": 7},
)
PLAN = full_plan(LAYOUT.table_rows, 4)


def some_batch(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(
        ids_BF=rng.integers(0, 7, (rows, 2)).astype(np.int32),
        dense_BN=rng.normal(size=(rows, 2)).astype(np.float32),
        sequences={"history": rng.integers(-1, 7, (rows, 3)).astype(np.int32)},
    )


def tokens_and_dense(rows, num_tokens, width, num_dense, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, num_tokens, width, generator=generator), torch.randn(rows, num_dense, generator=generator)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8), st.integers(0, 3), st.integers(0, 999))


@settings(max_examples=50, deadline=None)
@given(shapes)
def test_pairwise_products_equal_the_sum_over_pairs(shape):
    tokens_BTD, _ = tokens_and_dense(*shape)
    pairs = itertools.combinations(range(tokens_BTD.shape[1]), 2)
    expected = sum(((tokens_BTD[:, i] * tokens_BTD[:, j]).sum(1) for i, j in pairs), torch.zeros(len(tokens_BTD)))
    torch.testing.assert_close(pairwise_products(tokens_BTD), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_deepfm_is_the_sum_of_its_parts(shape):
    tokens_BTD, dense_BN = tokens_and_dense(*shape)
    _, num_tokens, width, num_dense, seed = shape
    torch.manual_seed(seed)
    head = build_head(head_config("deepfm", hidden=(5,), dropout=0.0), num_tokens, width, num_dense)
    for row, (tokens_TD, dense_N) in enumerate(zip(tokens_BTD, dense_BN, strict=True)):
        first = sum(head.fm.first_order_TD[t] @ tokens_TD[t] for t in range(num_tokens))
        second = sum(tokens_TD[i] @ tokens_TD[j] for i, j in itertools.combinations(range(num_tokens), 2))
        linear = head.fm.bias[0] + (head.fm.linear(dense_N)[0] if num_dense else 0.0)
        deep = head.deep(torch.cat([tokens_TD.flatten(), dense_N]))[0]
        expected = first + second + linear + deep
        assert head(tokens_BTD, dense_BN)[row].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_dlrm_feeds_all_dot_products_to_the_top(shape):
    tokens_BTD, dense_BN = tokens_and_dense(*shape)
    _, num_tokens, width, num_dense, seed = shape
    config = head_config("dlrm", hidden=(5,), dropout=0.0)
    if num_tokens + (num_dense > 0) < 2:
        with pytest.raises(NarrowcastError, match="at least two inputs"):
            build_head(config, num_tokens, width, num_dense)
        return
    torch.manual_seed(seed)
    head = build_head(config, num_tokens, width, num_dense)
    for row, (tokens_TD, dense_N) in enumerate(zip(tokens_BTD, dense_BN, strict=True)):
        bottom = [head.bottom(dense_N)] if num_dense else []
        vectors = [*bottom, *tokens_TD]
        products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        expected = head.top(torch.cat([*bottom, torch.stack(products)]))[0]
        assert head(tokens_BTD, dense_BN)[row].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("backbone", backbones())
def test_every_backbone_reaches_every_input(backbone):
    model = CTRModel(LAYOUT, PLAN, ModelConfig(backbone=backbone, hidden=(8, 4)), seed=0)
    ids_BF, dense_BN, sequences = to_tensors(some_batch())
    dense_BN.requires_grad_()
    logits_B = model(ids_BF, dense_BN, sequences)
    assert logits_B.shape == (5,)
    logits_B.sum().backward()
    assert (dense_BN.grad.abs().sum(0) > 0).all()
    assert all(p.grad is not None for p in model.parameters())
    for table in model.embedding.tables.values():
        gradient_Rk = table.group.weight_Rk.grad.to_dense()
        assert gradient_Rk[table.start : table.start + table.plan.kept_rows].abs().sum() > 0


@pytest.mark.parametrize("backbone", backbones())
def test_initial_values_follow_from_the_seed_and_leave_torchs_generator_alone(backbone):
    config = ModelConfig(backbone=backbone)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (CTRModel(LAYOUT, PLAN, config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    small = Plan(
        width=4,
        tables={
            name: TablePlan(rows=n, blocks=(Block(start=0, stop=1, columns=(0,)),))
            for name, n in LAYOUT.table_rows.items()
        },
    )
    for name, value in CTRModel(LAYOUT, small, config, seed=1).scorer.state_dict().items():
        assert torch.equal(value, one.scorer.state_dict()[name])


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(NarrowcastError, match="no model named 'deepmf': did you mean 'deepfm'"):
        ModelConfig(backbone="deepmf")
    with pytest.raises(NarrowcastError, match="hidden"):
        ModelConfig(hidden=())
    with pytest.raises(NarrowcastError, match="dropout"):
        ModelConfig(dropout=1.0)


def test_a_head_from_outside_is_one_class_and_its_config():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class LogisticConfig:
        name: ClassVar[str] = "logistic"
        hidden: tuple[int, ...]
        dropout: float

    @register(LogisticConfig)
    class Logistic(nn.Module):
        def __init__(self, config, num_tokens, width, num_dense):
            super().__init__()
            self.linear = nn.Linear(num_tokens * width + num_dense, 1)

        def forward(self, tokens_BTD, dense_BN):
            return self.linear(torch.cat([tokens_BTD.flatten(1), dense_BN], 1)).squeeze(1)

    try:
        assert "logistic" in backbones()
        model = CTRModel(LAYOUT, PLAN, ModelConfig(backbone="logistic"), seed=0)
        assert model(*to_tensors(some_batch())).shape == (5,)
        with pytest.raises(NarrowcastError, match="two models are named 'logistic'"):
            register(type("Other", (), {"name": "logistic"}))(Logistic)
    finally:
        del HEADS[LogisticConfig]


@pytest.mark.parametrize("backbone", backbones())
def test_a_checkpoint_gives_the_same_bits_back(backbone, tmp_path):
    plan = Plan(
        width=4,
        tables={
            "user_id": TablePlan(rows=9, blocks=(Block(start=0, stop=6, columns=(1, 3)),), inner_width=8),
            "item_id": TablePlan(rows=7, blocks=(Block(start=0, stop=7, columns=(0,)),), projection=2),
        },
    )
    model = CTRModel(LAYOUT, plan, ModelConfig(backbone=backbone, hidden=(8,)), seed=5).eval()
    save_checkpoint(tmp_path / "model", model, {"best_epoch": 1})
    loaded = load_checkpoint(tmp_path / "model")
    arguments = to_tensors(some_batch())
    assert torch.equal(loaded(*arguments), model(*arguments))
    assert loaded.config == model.config
    assert not loaded.training
    save_checkpoint(tmp_path / "again", loaded, {"best_epoch": 1})
    assert digest(tmp_path / "again") == digest(tmp_path / "model")


def test_a_bad_checkpoint_is_a_sentence(tmp_path):
    model = CTRModel(LAYOUT, PLAN, ModelConfig(), seed=0)
    with pytest.raises(NarrowcastError, match=r"model\.json does not exist"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(NarrowcastError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model)
    full_plan(LAYOUT.table_rows, 8).save(tmp_path / "plan.json")
    with pytest.raises(NarrowcastError, match="not of one checkpoint"):
        load_checkpoint(tmp_path)
    weights.unlink()
    with pytest.raises(NarrowcastError, match=r"model\.safetensors does not exist"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").write_text('{"backbon": "deepfm"}')
    with pytest.raises(NarrowcastError, match=r"model\.json: unknown key 'backbon'; did you mean 'backbone'"):
        load_checkpoint(tmp_path)
