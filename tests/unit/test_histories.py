"""The history encoders against plain loops, and what lets a history be encoded once for all candidates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.histories import (
    HISTORIES,
    Amortised,
    build_history,
    describe_histories,
    histories,
    history_config,
    register,
)
from narrowcast.components.train.histories.append import Append
from narrowcast.components.train.histories.attention import TransformerConfig, attend
from narrowcast.components.train.histories.mean import MeanConfig
from narrowcast.components.train.model import CTRModel, ModelConfig
from narrowcast.components.train.plan import full_plan
from narrowcast.errors import NarrowcastError

EXACT = {"rtol": 1e-10, "atol": 1e-12}
TRANSFORMERS = ("append", "concat")
AMORTISED = ("append", "din", "mean", "none")
READERS = ("append", "concat", "din")
"""Encoders that read the candidate and have parameters."""


@st.composite
def cases(draw, min_length=1):
    """An encoder's shape, and float64 histories of random lengths, zero among them, with candidates."""
    heads = draw(st.integers(1, 3))
    transformer = {
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": heads,
        "model_width": heads * draw(st.integers(1, 4)),
        "max_positions": draw(st.integers(1, 8)),
    }
    num_users, length, width = draw(st.integers(1, 4)), draw(st.integers(min_length, 7)), draw(st.integers(1, 6))
    lengths = torch.tensor([draw(st.integers(0, length)) for _ in range(num_users)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    rows_BLD = torch.randn(num_users, length, width, generator=generator, dtype=torch.float64)
    candidates_BMD = torch.randn(num_users, draw(st.integers(1, 6)), width, generator=generator, dtype=torch.float64)
    valid_BL = torch.arange(length) < lengths[:, None]
    return transformer, rows_BLD, valid_BL, candidates_BMD


def encoder(name, transformer, width, seed=0):
    """A float64 encoder with every parameter drawn at random, so that none is at a neutral value."""
    torch.manual_seed(seed)
    module = build_history(history_config(name, transformer if name in TRANSFORMERS else {}), width).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def together(module, rows_BLD, valid_BL, candidates_BMD):
    (tokens_BMD,) = module.score([(module.encode(rows_BLD, valid_BL), candidates_BMD)])
    return tokens_BMD


def one_by_one(module, rows_BLD, valid_BL, candidates_BMD):
    tokens = [module(rows_BLD, valid_BL, candidate_BD) for candidate_BD in candidates_BMD.unbind(1)]
    return torch.stack(tokens, dim=1)


# The registry


def test_the_encoders_by_name():
    assert set(histories()) == {"append", "concat", "din", "mean", "none"}
    assert list(describe_histories()) == list(histories())
    assert all(describe_histories().values())
    assert history_config("append", {"num_layers": 3}).num_layers == 3


def test_which_encoders_read_a_history_once_for_all_candidates():
    amortised = [name for name in histories() if isinstance(build_history(history_config(name, {}), 4), Amortised)]
    assert amortised == list(AMORTISED)


@pytest.mark.parametrize(
    ("name", "given_settings", "message"),
    [
        ("apend", {}, "no history encoder named 'apend': did you mean 'append'"),
        ("append", {"num_layer": 2}, "history 'append': unknown key 'num_layer'; did you mean 'num_layers'"),
        ("din", {"hidden": "36"}, "history 'din': hidden must be int"),
        ("din", {"hidden": 0}, "hidden is 0: must be at least 1"),
        ("concat", {"max_positions": 0}, "max_positions is 0: must be at least 1"),
        ("append", {"num_heads": 3}, "model_width is 32, which 3 heads cannot share"),
    ],
)
def test_a_wrong_name_or_setting_is_a_sentence(name, given_settings, message):
    with pytest.raises(NarrowcastError, match=message):
        history_config(name, given_settings)


def test_two_encoders_cannot_have_one_name():
    with pytest.raises(NarrowcastError, match="two history encoders are named 'mean'"):
        register(type("Other", (), {"name": "mean"}))(HISTORIES[MeanConfig])


# Against their definitions, row by row


@settings(max_examples=40, deadline=None)
@given(cases())
def test_mean_and_none(case):
    _, rows_BLD, valid_BL, candidates_BMD = case
    candidate_BD = candidates_BMD[:, 0]
    mean_BD = encoder("mean", {}, rows_BLD.shape[-1])(rows_BLD, valid_BL, candidate_BD)
    for rows_LD, valid_L, mean_D in zip(rows_BLD, valid_BL, mean_BD, strict=True):
        kept = rows_LD[valid_L]
        torch.testing.assert_close(mean_D, kept.mean(0) if len(kept) else torch.zeros_like(mean_D), **EXACT)
    none_BD = encoder("none", {}, rows_BLD.shape[-1])(rows_BLD, valid_BL, candidate_BD)
    assert torch.equal(none_BD, torch.zeros_like(candidate_BD))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_din_is_the_sum_of_items_weighted_by_the_activation_unit(case):
    _, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder("din", {}, rows_BLD.shape[-1])
    token_BD = module(rows_BLD, valid_BL, candidates_BMD[:, 0])
    first, prelu, second = module.unit
    for b, candidate_D in enumerate(candidates_BMD[:, 0]):
        expected = torch.zeros_like(candidate_D)
        for item_D in rows_BLD[b][valid_BL[b]]:
            pair = torch.cat([item_D, candidate_D, item_D * candidate_D, item_D - candidate_D])
            units = first.weight @ pair + first.bias
            units = torch.where(units > 0, units, prelu.weight * units)
            expected += (second.weight @ units + second.bias) * item_D
        torch.testing.assert_close(token_BD[b], expected, **EXACT)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_attention_is_softmax_of_scaled_products_over_valid_items(case):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    heads = transformer["num_heads"]
    queries_BHQd, keys_BHLd = (x.unsqueeze(1).repeat(1, heads, 1, 1) for x in (candidates_BMD, rows_BLD))
    values_BHLd = keys_BHLd.flip(-1) + torch.arange(heads)[None, :, None, None]
    found_BHQd = attend(queries_BHQd, keys_BHLd, values_BHLd, valid_BL)
    for b, h, q in torch.cartesian_prod(*map(torch.arange, found_BHQd.shape[:3])).reshape(-1, 3).tolist():
        query_d = queries_BHQd[b, h, q]
        items = [i for i, valid in enumerate(valid_BL[b].tolist()) if valid]
        weights = [math.exp(query_d @ keys_BHLd[b, h, i] / math.sqrt(len(query_d))) for i in items]
        expected = torch.zeros_like(query_d)
        for weight, i in zip(weights, items, strict=True):
            expected += weight / sum(weights) * values_BHLd[b, h, i]
        torch.testing.assert_close(found_BHQd[b, h, q], expected, **EXACT)


def normed(layer, x_W):
    return (x_W - x_W.mean()) / (x_W.var(correction=0) + layer.eps).sqrt() * layer.weight + layer.bias


def entered(layers, row_D):
    norm, linear = layers
    scaled_D = row_D / (row_D.square().mean() + norm.eps).sqrt() * norm.weight
    return linear.weight @ scaled_D + linear.bias


def through_block(block, x_W, history):
    """One query's stream after a block, by the formulas; `history` is the list of the valid items' streams."""
    width, d = len(x_W), len(x_W) // block.num_heads
    query_W = block.query.weight @ normed(block.norm, x_W) + block.query.bias
    pairs = [block.key_value.weight @ normed(block.norm, item_W) + block.key_value.bias for item_W in history]
    found = torch.zeros_like(x_W)
    for h in range(block.num_heads):
        part = slice(h * d, (h + 1) * d)
        weights = [math.exp(query_W[part] @ pair[:width][part] / math.sqrt(d)) for pair in pairs]
        for weight, pair in zip(weights, pairs, strict=True):
            found[part] += weight / sum(weights) * pair[width:][part]
    x_W = x_W + block.out.weight @ found
    norm, inner, _, outer = block.feed_forward
    return x_W + outer.weight @ (inner.weight @ normed(norm, x_W) + inner.bias).clamp(min=0) + outer.bias


@settings(max_examples=25, deadline=None)
@given(cases())
@torch.no_grad()
def test_append_reads_the_history_as_its_newest_item_would(case):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder("append", transformer, rows_BLD.shape[-1])
    tokens_BMD = together(module, rows_BLD, valid_BL, candidates_BMD)
    for b in range(len(rows_BLD)):
        items = rows_BLD[b][valid_BL[b]]
        places = [min(len(items) - 1 - i, transformer["max_positions"] - 1) for i in range(len(items))]
        history = [
            entered(module.enter, item_D) + module.positions.vectors.weight[place]
            for item_D, place in zip(items, places, strict=True)
        ]
        streams = [
            entered(module.enter, candidate_D) + module.candidate_position_W for candidate_D in candidates_BMD[b]
        ]
        for block in module.blocks:
            streams = [through_block(block, x_W, history) for x_W in streams]
            history = [through_block(block, item_W, history) for item_W in history]
        norm, linear = module.leave
        for m, x_W in enumerate(streams):
            expected = linear.weight @ normed(norm, x_W) + linear.bias
            torch.testing.assert_close(tokens_BMD[b, m], expected, **EXACT)


@settings(max_examples=25, deadline=None)
@given(cases())
@torch.no_grad()
def test_concat_joins_the_candidate_to_every_item(case):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder("concat", transformer, rows_BLD.shape[-1])
    token_BD = module(rows_BLD, valid_BL, candidates_BMD[:, 0])
    for b, candidate_D in enumerate(candidates_BMD[:, 0]):
        items = rows_BLD[b][valid_BL[b]]
        places = [min(len(items) - 1 - i, transformer["max_positions"] - 1) for i in range(len(items))]
        streams = [
            entered(module.enter, item_D)
            + entered(module.enter_candidate, candidate_D)
            + module.positions.vectors.weight[place]
            for item_D, place in zip(items, places, strict=True)
        ]
        for block in module.blocks:
            streams = [through_block(block, x_W, streams) for x_W in streams]
        pooled_W = torch.zeros(transformer["model_width"], dtype=torch.float64)
        for x_W in streams:
            pooled_W += normed(module.norm, x_W) / len(streams)
        torch.testing.assert_close(token_BD[b], module.leave.weight @ pooled_W + module.leave.bias, **EXACT)


# One history pass for all candidates


@pytest.mark.parametrize("name", AMORTISED)
@settings(max_examples=40, deadline=None)
@given(cases(min_length=0), st.integers(1, 3))
@torch.no_grad()
def test_candidates_score_together_as_one_by_one(name, case, micro_batch):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder(name, transformer, rows_BLD.shape[-1])
    expected_BMD = one_by_one(module, rows_BLD, valid_BL, candidates_BMD)
    state = module.encode(rows_BLD, valid_BL)
    parts = [(state, part_BmD) for part_BmD in candidates_BMD.split(micro_batch, dim=1)]
    torch.testing.assert_close(torch.cat(module.score(parts), dim=1), expected_BMD, **EXACT)
    torch.testing.assert_close(module.score([(state, candidates_BMD)])[0], expected_BMD, **EXACT)


@pytest.mark.parametrize("name", AMORTISED)
@settings(max_examples=40, deadline=None)
@given(cases(), st.data())
@torch.no_grad()
def test_users_score_together_as_alone_whatever_their_lengths(name, case, data):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder(name, transformer, rows_BLD.shape[-1])
    all_users = module.encode(rows_BLD, valid_BL)
    parts, expected = [], []
    for b, length in enumerate(valid_BL.sum(1).tolist()):
        num_candidates = data.draw(st.integers(1, candidates_BMD.shape[1]))
        state = all_users.user(b, max(length, 1))
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (*state.by_item, *state.by_user))
        assert (state.valid_BL is None) == (length > 0)
        parts.append((state, candidates_BMD[b : b + 1, :num_candidates]))
        alone_BL = valid_BL[b : b + 1, :length]
        expected.append(one_by_one(module, rows_BLD[b : b + 1, :length], alone_BL, parts[-1][1]))
    for tokens_1MD, expected_1MD in zip(module.score(parts), expected, strict=True):
        torch.testing.assert_close(tokens_1MD, expected_1MD, **EXACT)


@torch.no_grad()
def test_append_in_float32_at_its_defaults_scores_together_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = build_history(history_config("append", {}), 16)
    rows_BLD, candidates_BMD = (torch.randn(3, n, 16, generator=generator) * 0.1 for n in (50, 200))
    valid_BL = torch.arange(50) < torch.tensor([0, 17, 50])[:, None]
    together_BMD = together(module, rows_BLD, valid_BL, candidates_BMD)
    expected_BMD = one_by_one(module, rows_BLD, valid_BL, candidates_BMD)
    torch.testing.assert_close(together_BMD, expected_BMD, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_in_append_neither_history_nor_another_candidate_reads_a_candidate(case):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder("append", transformer, rows_BLD.shape[-1])
    state = module.encode(rows_BLD, valid_BL)
    kept = [tensor.clone() for tensor in state.by_item]
    candidates_BMD.requires_grad_()
    (tokens_BMD,) = module.score([(state, candidates_BMD)])
    (gradient_BMD,) = torch.autograd.grad(tokens_BMD[:, 0].square().sum(), candidates_BMD)
    assert torch.equal(gradient_BMD[:, 1:], torch.zeros_like(gradient_BMD[:, 1:]))
    for tensor, before in zip(state.by_item, kept, strict=True):
        assert torch.equal(tensor, before)
        # The state is a function of the history alone: the graph behind it does not hold the candidates.
        (gradient,) = torch.autograd.grad(tensor.sum(), candidates_BMD, allow_unused=True, retain_graph=True)
        assert gradient is None


@torch.no_grad()
def test_no_attention_score_of_append_is_wider_than_the_history(monkeypatch):
    torch.manual_seed(1)
    shapes = []

    def watched(queries, keys, values, **options):
        shapes.append((queries.shape[2], keys.shape[2]))
        return attention(queries, keys, values, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    module = encoder("append", {"num_layers": 3}, 4)
    rows_BLD, valid_BL = torch.randn(2, 5, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    state = module.encode(rows_BLD, valid_BL)
    assert shapes == [(5, 5), (5, 5)]
    module.score([(state, torch.randn(2, 9, 4, dtype=torch.float64))])
    assert shapes[2:] == [(9, 5)] * 3


# What every encoder promises


@pytest.mark.parametrize("name", histories())
@settings(max_examples=25, deadline=None)
@given(cases(min_length=0), st.integers(1, 5), st.floats(-1e3, 1e3))
@torch.no_grad()
def test_more_pads_change_nothing(name, case, num_pads, fill):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder(name, transformer, rows_BLD.shape[-1])
    token_BD = module(rows_BLD, valid_BL, candidates_BMD[:, 0])
    longer_BLD = torch.nn.functional.pad(rows_BLD, (0, 0, 0, num_pads), value=fill)
    longer_BL = torch.nn.functional.pad(valid_BL, (0, num_pads), value=False)
    longer_BLD = torch.where(longer_BL.unsqueeze(-1), longer_BLD, fill)
    torch.testing.assert_close(module(longer_BLD, longer_BL, candidates_BMD[:, 0]), token_BD, **EXACT)


@pytest.mark.parametrize("name", histories())
@settings(max_examples=25, deadline=None)
@given(cases(min_length=0))
def test_an_empty_history_is_finite_and_changes_no_other_row(name, case):
    transformer, rows_BLD, valid_BL, candidates_BMD = case
    module = encoder(name, transformer, rows_BLD.shape[-1])
    valid_BL = torch.cat([torch.zeros_like(valid_BL[:1]), valid_BL])
    rows_BLD = torch.cat([rows_BLD[:1], rows_BLD]).requires_grad_()
    candidate_BD = torch.cat([candidates_BMD[:1, 0], candidates_BMD[:, 0]]).requires_grad_()
    token_BD = module(rows_BLD, valid_BL, candidate_BD)
    assert token_BD.shape == candidate_BD.shape
    assert torch.isfinite(token_BD).all()
    torch.testing.assert_close(token_BD[1:], module(rows_BLD[1:], valid_BL[1:], candidate_BD[1:]), **EXACT)
    if token_BD.requires_grad:
        token_BD.square().sum().backward()
        given_tensors = (rows_BLD, candidate_BD, *module.parameters())
        assert all(torch.isfinite(tensor.grad).all() for tensor in given_tensors if tensor.grad is not None)
        if rows_BLD.grad is not None:
            assert torch.equal(rows_BLD.grad[~valid_BL], torch.zeros_like(rows_BLD.grad[~valid_BL]))


@torch.no_grad()
def test_what_an_empty_history_gives():
    torch.manual_seed(1)
    rows_BLD, valid_BL = torch.randn(2, 4, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.bool)
    candidate_BD = torch.randn(2, 3, dtype=torch.float64)
    modules = {name: encoder(name, {"num_layers": 2}, 3) for name in histories()}
    tokens = {name: module(rows_BLD, valid_BL, candidate_BD) for name, module in modules.items()}
    for name in ("mean", "none", "din"):
        assert torch.equal(tokens[name], torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(tokens["concat"], modules["concat"].leave.bias.expand(2, 3))
    append = modules["append"]
    stream_BW = append.enter(candidate_BD) + append.candidate_position_W
    for block in append.blocks:
        stream_BW = stream_BW + block.feed_forward(stream_BW)
    torch.testing.assert_close(tokens["append"], append.leave(stream_BW), **EXACT)


@torch.no_grad()
def test_order_matters_to_transformers_alone_and_counts_from_the_newest():
    torch.manual_seed(1)
    rows_BLD, candidate_BD = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    valid_BL = torch.ones(3, 6, dtype=torch.bool)
    for name in histories():
        module = encoder(name, {"max_positions": 3}, 4)
        token_BD = module(rows_BLD, valid_BL, candidate_BD)
        newest_swapped = module(rows_BLD[:, [0, 1, 2, 3, 5, 4]], valid_BL, candidate_BD)
        oldest_swapped = module(rows_BLD[:, [1, 0, 2, 3, 4, 5]], valid_BL, candidate_BD)
        assert torch.allclose(token_BD, newest_swapped, **EXACT) == (name not in TRANSFORMERS)
        assert torch.allclose(token_BD, oldest_swapped, **EXACT)  # both are beyond the last position


@pytest.mark.parametrize("name", READERS)
def test_gradients_reach_every_parameter_and_both_sides(name):
    torch.manual_seed(1)
    rows_BLD = torch.randn(5, 6, 4, dtype=torch.float64, requires_grad=True)
    candidate_BD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    valid_BL = torch.arange(6) < torch.tensor([6, 5, 4, 3, 2])[:, None]
    module = encoder(name, {"num_layers": 2, "max_positions": 6}, 4)
    module(rows_BLD, valid_BL, candidate_BD).square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, parameter_name
    if name in TRANSFORMERS:
        assert (module.positions.vectors.weight.grad.abs().sum(1) > 0).all()
    assert (candidate_BD.grad.abs().sum(1) > 0).all()
    assert ((rows_BLD.grad.abs().sum(2) > 0) == valid_BL).all()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_gradient_is_the_finite_difference(name):
    module = encoder(name, {"num_layers": 2, "model_width": 4}, 3)
    rows_BLD = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    candidate_BD = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    valid_BL = torch.arange(4) < torch.tensor([0, 2, 4])[:, None]
    assert torch.autograd.gradcheck(lambda rows, candidate: module(rows, valid_BL, candidate), (rows_BLD, candidate_BD))


@pytest.mark.parametrize("name", histories())
def test_bfloat16_stays_near_float32(name):
    torch.manual_seed(0)
    module = build_history(history_config(name, {}), 16)
    rows_BLD, candidate_BD = torch.randn(4, 9, 16, requires_grad=True), torch.randn(4, 16)
    valid_BL = torch.arange(9) < torch.tensor([0, 1, 5, 9])[:, None]
    token_BD = module(rows_BLD, valid_BL, candidate_BD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded_BD = module(rows_BLD, valid_BL, candidate_BD)
    torch.testing.assert_close(rounded_BD.float(), token_BD, rtol=0.05, atol=0.05)


def test_settings_are_shared_by_the_two_transformers():
    names = [set(history_config(name, {}).__dataclass_fields__) - {"name"} for name in TRANSFORMERS]
    assert names[0] == names[1] == set(TransformerConfig.__dataclass_fields__)
    assert isinstance(build_history(history_config("append", {}), 4), Append)


# In a model


LAYOUT = Layout(
    categorical=("user_id", "item_id"),
    numeric=(),
    sequences=("tags", "history"),
    table_of={"user_id": "user_id", "item_id": "item_id", "tags": "tags", "history": "item_id"},
    table_rows={"user_id": 9, "item_id": 7, "tags": 5},
)


@pytest.mark.parametrize("name", READERS)
def test_candidate_and_history_read_one_table(name):
    model = CTRModel(LAYOUT, full_plan(LAYOUT.table_rows, 4), ModelConfig(hidden=(8,), history=name), seed=0)
    ids_BF = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    sequences = {
        "tags": torch.tensor([[1, -1], [2, 3]], dtype=torch.int32),
        "history": torch.tensor([[5, 2, -1], [-1, -1, -1]], dtype=torch.int32),
    }
    found = model.embedding(ids_BF, sequences)
    assert torch.equal(found.rows_BLD["history"][0, 1], found.categorical_BFD[0, 1])
    token_BD = model.scorer.tokens(found)[:, -1]
    valid_BL = sequences["history"] >= 0
    expected_BD = model.scorer.history(found.rows_BLD["history"], valid_BL, found.categorical_BFD[:, 1])
    assert torch.equal(token_BD, expected_BD)
    read = (found.rows_BLD["history"], found.categorical_BFD, found.rows_BLD["tags"])
    history_BLD, categorical_BFD, tags_BLD = torch.autograd.grad(token_BD[0].square().sum(), read)
    assert history_BLD.any(2).tolist() == [[True, True, False], [False, False, False]]
    assert categorical_BFD.any(2).tolist() == [[False, True], [False, False]]
    assert not tags_BLD.any()


@pytest.mark.parametrize("name", histories())
@torch.no_grad()
def test_one_row_of_a_sequence_stands_for_all(name):
    model = CTRModel(LAYOUT, full_plan(LAYOUT.table_rows, 4), ModelConfig(hidden=(8,), history=name), seed=0)
    ids_BF, dense_BN = torch.tensor([[1, 2], [3, 4], [1, 6]]), torch.zeros(3, 0)
    one = {"tags": torch.tensor([[1, -1]]), "history": torch.tensor([[5, 2, -1]])}
    repeated = {field: ids_1L.repeat(3, 1) for field, ids_1L in one.items()}
    torch.testing.assert_close(model(ids_BF, dense_BN, one), model(ids_BF, dense_BN, repeated), rtol=1e-5, atol=1e-7)
