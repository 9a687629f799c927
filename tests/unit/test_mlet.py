"""MLET on every backbone, field and history encoder; its update against the closed form in float64.

Shape letters: R rows of a table, k inner width, D width.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.compact.packed import PackedNetwork
from narrowcast.components.compact.packed_table import table_tensors
from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.train.embedding import EmbeddingLayer
from narrowcast.components.train.heads import backbones
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, ModelConfig, to_tensors
from narrowcast.components.train.plan import Plan, full_plan

WIDTH = 4
INNER = 12
LAYOUT = Layout(
    categorical=("user_id", "item_id"),
    numeric=("age",),
    sequences=("tags", "history"),
    table_of={"user_id": "user_id", "item_id": "item_id", "tags": "tags", "history": "item_id"},
    table_rows={"user_id": 9, "item_id": 7, "tags": 5},
)
PLAIN = full_plan(LAYOUT.table_rows, WIDTH)
FACTORISED = full_plan(LAYOUT.table_rows, WIDTH, inner_width=INNER)


def some_batch(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    ids_BF = np.stack([rng.integers(0, LAYOUT.table_rows[name], rows) for name in LAYOUT.categorical], axis=1)
    return Batch(
        ids_BF=ids_BF.astype(np.int32),
        dense_BN=rng.normal(size=(rows, 1)).astype(np.float32),
        sequences={
            name: np.sort(rng.integers(-1, 5, (rows, 3)).astype(np.int32), axis=1)[:, ::-1].copy()
            for name in LAYOUT.sequences
        },
    )


def trained(plan: Plan, config: ModelConfig, steps=3) -> CTRModel:
    """A few steps of SGD from values large enough for every part of a score to show."""
    model = CTRModel(LAYOUT, plan, config, seed=1)
    with torch.no_grad():
        for parameter in model.embedding.parameters():
            parameter.mul_(5.0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        logit_B = model(*to_tensors(some_batch(seed=step)))
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logit_B, (torch.arange(16) % 2).float()).backward()
        optimiser.step()
    return model.eval()


def packed_tensors(model: CTRModel) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, table in model.embedding.tables.items()
        for key, tensor in table_tensors(table).items()
    }


@torch.no_grad()
def demand_folding_changes_nothing(model: CTRModel) -> None:
    """Packed, the model scores as before, and its tables weigh what plain ones of its width do."""
    tensors = packed_tensors(model)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert stored == model.plan.stored_bytes() == PLAIN.stored_bytes()
    packed = PackedNetwork(LAYOUT, model.plan, model.scorer, tensors).eval()
    arguments = to_tensors(some_batch(rows=64, seed=9))
    before, after = torch.sigmoid(model(*arguments)), torch.sigmoid(packed(*arguments))
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", backbones())
def test_every_backbone_scores_the_same_when_folded_and_weighs_what_plain_tables_do(backbone):
    model = trained(FACTORISED, ModelConfig(backbone=backbone, hidden=(8,)))
    assert all(table.weight_Rk.shape[1] == INNER for table in model.embedding.tables.values())
    demand_folding_changes_nothing(model)


@pytest.mark.parametrize("history", histories())
def test_every_history_encoder_scores_the_same_when_folded(history):
    demand_folding_changes_nothing(trained(FACTORISED, ModelConfig(hidden=(8,), history=history)))


@pytest.mark.parametrize("name", LAYOUT.table_rows)
def test_any_one_table_can_be_factorised_beside_plain_ones(name):
    plan = Plan(width=WIDTH, tables={**PLAIN.tables, name: FACTORISED.tables[name]})
    model = trained(plan, ModelConfig(hidden=(8,)))
    assert [other for other, table in model.embedding.tables.items() if table.core_kD is not None] == [name]
    demand_folding_changes_nothing(model)


@pytest.mark.parametrize("backbone", backbones())
def test_the_control_of_inner_width_d_differs_from_plain_only_by_the_factorisation(backbone):
    config = ModelConfig(backbone=backbone, hidden=(8,))
    plain = CTRModel(LAYOUT, PLAIN, config, seed=3).eval()
    control = CTRModel(LAYOUT, full_plan(LAYOUT.table_rows, WIDTH, inner_width=WIDTH), config, seed=3).eval()
    for name, value in plain.scorer.state_dict().items():
        assert torch.equal(value, control.scorer.state_dict()[name])
    arguments = to_tensors(some_batch())
    with torch.no_grad():
        assert not torch.equal(control(*arguments), plain(*arguments))
        for name, table in control.embedding.tables.items():
            assert torch.equal(table.weight_Rk, plain.embedding.tables[name].weight_Rk)
            table.core_kD.copy_(torch.eye(WIDTH))
        assert torch.equal(control(*arguments), plain(*arguments))


@st.composite
def updates(draw):
    """Rows, width, inner width, the ids of a batch (repeated ones too), a learning rate, and a seed."""
    rows = draw(st.integers(2, 12))
    return (
        rows,
        draw(st.integers(1, 6)),
        draw(st.integers(1, 10)),
        draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=6)),
        draw(st.floats(1e-3, 1.0)),
        draw(st.integers(0, 2**31)),
    )


def one_step(rows, width, inner, ids, rate, seed):
    """A step of SGD in float64 on a loss whose gradient G of the looked-up table is drawn.

    Returns W2 and W1 before it, G, and the folded table before and after.
    """
    layout = Layout(categorical=("id",), numeric=(), sequences=(), table_of={"id": "id"}, table_rows={"id": rows})
    plan = full_plan(layout.table_rows, width, inner_width=inner)
    layer = EmbeddingLayer(layout, plan, seed=seed, init_std=0.01).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    table = layer.tables["id"]
    w2_Rk, w1_kD = table.weight_Rk.detach().clone(), table.core_kD.detach().clone()
    gradient_nD = torch.randn(len(ids), width, dtype=torch.float64, generator=generator)
    gradient_RD = torch.zeros(rows, width, dtype=torch.float64).index_add_(0, torch.tensor(ids), gradient_nD)
    before = table.folded().clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=rate)
    (table(torch.tensor(ids)) * gradient_nD).sum().backward()
    optimiser.step()
    return w2_Rk, w1_kD, gradient_RD, before, layer.tables["id"].folded()


@settings(max_examples=80, deadline=None)
@given(updates())
def test_a_step_moves_the_folded_table_as_the_closed_form_says(update):
    """With W2' = W2 - eta G W1^T and W1' = W1 - eta W2^T G, the product moves by
    -eta (G W1^T W1 + W2 W2^T G) + eta^2 G W1^T W2^T G, exactly."""
    rate = update[4]
    w2_Rk, w1_kD, gradient_RD, before, after = one_step(*update)
    first_order = gradient_RD @ w1_kD.T @ w1_kD + w2_Rk @ w2_Rk.T @ gradient_RD
    second_order = gradient_RD @ w1_kD.T @ w2_Rk.T @ gradient_RD
    torch.testing.assert_close(before, w2_Rk @ w1_kD, rtol=1e-12, atol=1e-12)
    expected = -rate * first_order + rate**2 * second_order
    torch.testing.assert_close(after - before, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(updates())
def test_rows_outside_the_batch_move_with_the_inner_matrix_alone(update):
    rate, ids = update[4], update[3]
    w2_Rk, _, gradient_RD, before, after = one_step(*update)
    outside = [row for row in range(update[0]) if row not in ids]
    moved = -rate * w2_Rk @ (w2_Rk.T @ gradient_RD)
    torch.testing.assert_close((after - before)[outside], moved[outside], rtol=1e-9, atol=1e-9)
    assert ((after - before).abs().sum(1) > 0).all()
