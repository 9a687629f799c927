"""LR, FM, DCNv2, AutoInt, MaskNet and FinalMLP against their equations, row by row; every setting learns and saves."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.data.encoded import EncodedData, Layout
from narrowcast.components.train.checkpoint import load_checkpoint, save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit
from narrowcast.components.train.heads import build_head, head_config
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import full_plan
from narrowcast.errors import NarrowcastError

VARIANTS = [
    ("lr", {}),
    ("fm", {}),
    ("dcnv2", {}),
    ("dcnv2", {"rank": 2, "structure": "stacked"}),
    ("autoint", {}),
    ("autoint", {"deep": False, "num_layers": 1, "num_heads": 3, "attention_width": 6}),
    ("masknet", {}),
    ("masknet", {"structure": "serial", "num_blocks": 2, "reduction": 0.5}),
    ("finalmlp", {}),
    ("finalmlp", {"hidden2": [4, 6], "num_heads": 2, "context1": [0], "context2": [1, 0]}),
]
variants = pytest.mark.parametrize(("backbone", "own"), VARIANTS, ids=lambda value: str(value))
shapes = {
    "num_rows": st.integers(1, 3),
    "num_tokens": st.integers(1, 4),
    "width": st.integers(1, 5),
    "num_dense": st.integers(0, 3),
    "seed": st.integers(0, 999),
}


def drawn(backbone, own, num_rows, num_tokens, width, num_dense, seed):
    """A head with none of its values left at 0 or 1, in float64, and inputs for it."""
    torch.manual_seed(seed)
    config = head_config(backbone, hidden=(5, 4), dropout=0.0, settings=own)
    head = build_head(config, num_tokens, width, num_dense).double()
    with torch.no_grad():
        for value in head.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    return head, torch.randn(num_rows, num_tokens, width).double(), torch.randn(num_rows, num_dense).double()


def check(head, tokens_BTD, dense_BN, reference):
    expected_B = torch.stack([reference(*row) for row in zip(tokens_BTD, dense_BN, strict=True)])
    torch.testing.assert_close(head(tokens_BTD, dense_BN), expected_B)


@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_lr_sums_the_weights_of_what_is_there(**shape):
    head, tokens_BTD, dense_BN = drawn("lr", {}, **shape)

    def reference(tokens_TD, dense_N):
        weights = head.linear.weight[0] if shape["num_dense"] else torch.zeros(0)
        return head.bias[0] + sum(token_D.sum() for token_D in tokens_TD) + sum(weights * dense_N)

    check(head, tokens_BTD, dense_BN, reference)


@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_fm_adds_the_product_of_every_pair(**shape):
    head, tokens_BTD, dense_BN = drawn("fm", {}, **shape)

    def reference(tokens_TD, dense_N):
        first = sum(weight_D @ token_D for weight_D, token_D in zip(head.first_order_TD, tokens_TD, strict=True))
        linear = head.linear.weight[0] @ dense_N if shape["num_dense"] else 0
        return head.bias[0] + linear + first + sum(a @ b for a, b in itertools.combinations(tokens_TD, 2))

    check(head, tokens_BTD, dense_BN, reference)


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(0, 3), num_cross=st.integers(1, 3), structure=st.sampled_from(["parallel", "stacked"]), **shapes
)
def test_dcnv2_crosses_with_the_first_inputs_in_every_layer(rank, num_cross, structure, **shape):
    own = {"rank": rank, "num_cross": num_cross, "structure": structure}
    head, tokens_BTD, dense_BN = drawn("dcnv2", own, **shape)

    def reference(tokens_TD, dense_N):
        first_X = torch.cat([tokens_TD.flatten(), dense_N])
        crossed_X = first_X
        for layer in head.crosses:
            matrix_XX = layer.up.weight @ layer.down.weight if rank else layer.up.weight
            assert torch.linalg.matrix_rank(matrix_XX) <= (rank or len(first_X))
            crossed_X = first_X * (matrix_XX @ crossed_X + layer.up.bias) + crossed_X
        if structure == "stacked":
            return head.output(head.deep(crossed_X))[0]
        return head.output(torch.cat([crossed_X, head.deep(first_X)]))[0]

    check(head, tokens_BTD, dense_BN, reference)


@settings(max_examples=40, deadline=None)
@given(num_layers=st.integers(1, 3), num_heads=st.integers(1, 3), deep=st.booleans(), **shapes)
def test_autoint_attends_from_every_input_to_all(num_layers, num_heads, deep, **shape):
    width = 2 * num_heads
    own = {"num_layers": num_layers, "num_heads": num_heads, "attention_width": width, "deep": deep}
    head, tokens_BTD, dense_BN = drawn("autoint", own, **shape)

    def interact(layer, vectors):
        query, key, value, residual = layer.query_key_value_residual.weight.split(width)
        found = []
        for vector in vectors:
            mixtures = []
            for h in range(num_heads):
                mine = slice(2 * h, 2 * h + 2)
                scores = torch.stack([(query[mine] @ vector) @ (key[mine] @ other) for other in vectors])
                shares = scores.exp() / scores.exp().sum()
                mixtures.append(sum(s * (value[mine] @ other) for s, other in zip(shares, vectors, strict=True)))
            found.append((torch.cat(mixtures) + residual @ vector).clamp(min=0))
        return found

    def reference(tokens_TD, dense_N):
        first = [*tokens_TD, *(x * head.dense_ND[n] for n, x in enumerate(dense_N))]
        vectors = first
        for layer in head.layers:
            vectors = interact(layer, vectors)
        return head.output(torch.cat(vectors))[0] + (head.deep(torch.cat(first))[0] if deep else 0)

    check(head, tokens_BTD, dense_BN, reference)


def layer_norm(x, gain, shift):
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * gain + shift


@settings(max_examples=40, deadline=None)
@given(num_blocks=st.integers(1, 3), structure=st.sampled_from(["parallel", "serial"]), **shapes)
def test_masknet_masks_every_block_by_the_row(num_blocks, structure, **shape):
    own = {"num_blocks": num_blocks, "structure": structure, "block_width": 6, "reduction": 1.5}
    head, tokens_BTD, dense_BN = drawn("masknet", own, **shape)

    def reference(tokens_TD, dense_N):
        row_X = torch.cat([tokens_TD.flatten(), dense_N])
        normalised = [layer_norm(x, head.gain_TD[t], head.shift_TD[t]) for t, x in enumerate(tokens_TD)]
        embedded_X = torch.cat([*normalised, dense_N])
        hidden, outputs = embedded_X, []
        for block in head.blocks:
            aggregate, _, project = block.mask
            mask = project.weight @ (aggregate.weight @ row_X + aggregate.bias).clamp(min=0) + project.bias
            output = layer_norm(block.linear.weight @ (mask * hidden), block.norm.weight, block.norm.bias).clamp(min=0)
            outputs.append(output)
            hidden = output if structure == "serial" else embedded_X
        if structure == "serial":
            return head.top[0].weight[0] @ outputs[-1] + head.top[0].bias[0]
        return head.top(torch.cat(outputs))[0]

    check(head, tokens_BTD, dense_BN, reference)


@settings(max_examples=40, deadline=None)
@given(num_heads=st.sampled_from([1, 2, 4]), context=st.booleans(), **shapes)
def test_finalmlp_fuses_two_gated_streams(num_heads, context, **shape):
    own = {"num_heads": num_heads, "hidden2": [3, 8], "context1": [0] if context else []}
    head, tokens_BTD, dense_BN = drawn("finalmlp", own, **shape)

    def reference(tokens_TD, dense_N):
        row_X = torch.cat([tokens_TD.flatten(), dense_N])
        gate1_X = head.gate1.network(tokens_TD[0]) if context else head.gate1.gate_X
        first_O = head.stream1(2 * torch.sigmoid(gate1_X) * row_X)
        second_O = head.stream2(2 * torch.sigmoid(head.gate2.gate_X) * row_X)
        bilinear = sum(
            a @ matrix @ b
            for a, matrix, b in zip(
                first_O.chunk(num_heads), head.fusion.product_HPQ, second_O.chunk(num_heads), strict=True
            )
        )
        linear = head.fusion.first.weight[0] @ first_O + head.fusion.second.weight[0] @ second_O
        return bilinear + linear + head.fusion.first.bias[0]

    check(head, tokens_BTD, dense_BN, reference)


def test_finalmlp_lets_everything_through_at_first_and_its_second_stream_is_as_the_first():
    config = head_config("finalmlp", hidden=(5, 4), dropout=0.0)
    head = build_head(config, num_tokens=2, width=3, num_dense=1)
    inputs_BX = torch.randn(4, 7)
    assert torch.equal(head.gate1(torch.randn(4, 2, 3), inputs_BX), inputs_BX)
    assert [layer.weight.shape for layer in head.stream2[::2]] == [layer.weight.shape for layer in head.stream1[::2]]


@variants
def test_gradients_reach_every_value(backbone, own):
    head, tokens_BTD, dense_BN = drawn(backbone, own, num_rows=64, num_tokens=3, width=4, num_dense=2, seed=0)
    (head(tokens_BTD.requires_grad_(), dense_BN.requires_grad_()) ** 2).sum().backward()
    for name, value in [("tokens", tokens_BTD), ("dense", dense_BN), *head.named_parameters()]:
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


@variants
def test_every_variant_learns_and_comes_back_from_its_checkpoint(backbone, own, tiny_encoded, tmp_path):
    data = EncodedData(tiny_encoded)
    model = ModelConfig(backbone=backbone, hidden=(16,) if "hidden2" not in own else (16, 8), settings=own)
    config = TrainConfig(model=model, epochs=4, batch_size=128, learning_rate=0.01)
    state = fit(data, full_plan(data.layout.table_rows, 8), config, tell=lambda line: None)
    assert state.best["validation_auc"] > 0.6
    save_checkpoint(tmp_path, state.model)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == model
    saved = state.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())


@variants
def test_a_row_does_not_depend_on_the_others(backbone, own):
    layout = Layout(
        categorical=("user", "item"),
        numeric=(),
        sequences=(),
        table_of={"user": "user", "item": "item"},
        table_rows={"user": 9, "item": 7},
    )
    plan = full_plan(layout.table_rows, 4)
    model = CTRModel(layout, plan, ModelConfig(backbone=backbone, settings=own), seed=3).eval()
    ids_BF = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (6, 2)))
    together = model(ids_BF, torch.zeros(6, 0), {})
    alone = torch.cat([model(ids_BF[i : i + 1], torch.zeros(1, 0), {}) for i in range(6)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("backbone", "own", "sentence"),
    [
        ("dcnv2", {"num_cross": 0}, "num_cross of dcnv2 is 0: must be at least 1"),
        ("dcnv2", {"rank": -1}, "rank of dcnv2 is -1: must be at least 0"),
        ("dcnv2", {"structure": "stacke"}, "structure is 'stacke'; did you mean 'stacked'"),
        ("autoint", {"num_heads": 0}, "num_heads of autoint is 0"),
        ("autoint", {"num_heads": 3}, "attention_width of autoint is 64, which 3 heads cannot share"),
        ("masknet", {"num_blocks": 0}, "num_blocks of masknet is 0"),
        ("masknet", {"reduction": 0.0}, "reduction of masknet is 0.0: must be a positive number"),
        ("masknet", {"structure": "both"}, "valid names: parallel, serial"),
        ("finalmlp", {"num_heads": 3}, "does not divide the stream's last width 64"),
        ("finalmlp", {"num_heads": 0}, "num_heads of finalmlp is 0"),
        ("finalmlp", {"hidden2": [0]}, "hidden2 of finalmlp"),
        ("fm", {"rank": 2}, "unknown key 'rank'"),
    ],
)
def test_a_bad_setting_is_a_sentence(backbone, own, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        ModelConfig(backbone=backbone, settings=own)


def test_a_gate_that_reads_no_input_is_a_sentence():
    config = head_config("finalmlp", hidden=(4,), dropout=0.0, settings={"context2": [2]})
    with pytest.raises(NarrowcastError, match="context2 of finalmlp names input 2: the data has 2 categorical"):
        build_head(config, num_tokens=2, width=3, num_dense=0)
