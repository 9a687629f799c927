"""The masks and the transformer after Ad-Rec: what a closed pair cuts; the whole model against itself row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from narrowcast.components.train.heads import build_head, head_config
from narrowcast.components.train.masks import MASKS, MaskConfig, build_mask, masked_softmax
from narrowcast.errors import NarrowcastError

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3), st.integers(0, 999))
kinds = st.sampled_from(sorted(MASKS))


def a_mask(kind, num_heads, num_tokens, *, top_k=2, penalty=0.5, initial_logit=0.1):
    config = MaskConfig(kind=kind, top_k=top_k, penalty=penalty, initial_logit=initial_logit)
    return build_mask(config, num_heads, num_tokens)


def a_head(shape, **own):
    """A head in double precision whose learned masks, if any, have pairs open and closed, and its inputs."""
    rows, num_tokens, width, num_dense, seed = shape
    torch.manual_seed(seed)
    config = head_config("adrec", hidden=(5,), dropout=0.0, settings={"bottom": [3], **own})
    head = build_head(config, num_tokens, width, num_dense).double()
    for name, parameter in head.named_parameters():
        if name.endswith("logit_HVV"):
            torch.nn.init.normal_(parameter)
    tokens_BTD = torch.randn(rows, num_tokens, width, dtype=torch.float64)
    return head, tokens_BTD, torch.randn(rows, num_dense, dtype=torch.float64)


def open_pairs(mask, scores_BHVV):
    return mask(scores_BHVV).detach().expand(scores_BHVV.shape)


@settings(max_examples=25, deadline=None)
@given(kinds, shapes, st.integers(1, 3), st.integers(1, 8))
def test_a_token_always_reads_itself(kind, shape, num_heads, top_k):
    rows, num_tokens, _, _, seed = shape
    torch.manual_seed(seed)
    mask = a_mask(kind, num_heads, num_tokens, top_k=top_k, initial_logit=-3.0)
    open_BHVV = open_pairs(mask, 50 * torch.randn(rows, num_heads, num_tokens, num_tokens))
    assert set(open_BHVV.unique().tolist()) <= {0.0, 1.0}
    assert (open_BHVV.diagonal(dim1=-2, dim2=-1) == 1).all()


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(1, 8))
def test_topk_keeps_exactly_k_a_row_the_best_of_the_others(shape, num_heads, top_k):
    rows, num_tokens, _, _, seed = shape
    torch.manual_seed(seed)
    scores_BHVV = torch.randn(rows, num_heads, num_tokens, num_tokens).round(decimals=1)  # with ties
    open_BHVV = open_pairs(a_mask("topk", num_heads, num_tokens, top_k=top_k), scores_BHVV)
    assert (open_BHVV.sum(-1) == min(top_k, num_tokens)).all()
    others = ~torch.eye(num_tokens, dtype=torch.bool).expand_as(scores_BHVV)
    worst_kept = scores_BHVV.masked_fill((open_BHVV == 0) | ~others, torch.inf).amin(-1)
    best_left = scores_BHVV.masked_fill(open_BHVV == 1, -torch.inf).amax(-1)
    assert (worst_kept >= best_left).all()


@settings(max_examples=25, deadline=None)
@given(shapes, st.floats(1, 300))
def test_masked_softmax_is_the_softmax_of_what_is_open(shape, scale):
    rows, num_tokens, _, _, seed = shape
    torch.manual_seed(seed)
    scores = (scale * torch.randn(rows, num_tokens, num_tokens, dtype=torch.float64)).requires_grad_()
    open_VV = (torch.rand(num_tokens, num_tokens) < 0.5) | torch.eye(num_tokens, dtype=torch.bool)
    expected = torch.softmax(scores.masked_fill(~open_VV, -torch.inf), -1)
    found = masked_softmax(scores, open_VV.double())
    torch.testing.assert_close(found, expected)
    assert (found[:, ~open_VV] == 0).all()
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), scores)
    (found_gradient,) = torch.autograd.grad((found * weights).sum(), scores)
    torch.testing.assert_close(found_gradient, expected_gradient)


def test_scores_far_apart_leave_no_nan():
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    gates = torch.eye(2, requires_grad=True)
    weights = masked_softmax(scores, gates)
    assert torch.equal(weights, torch.eye(2))
    weights[0, 0].backward()
    assert torch.isfinite(scores.grad).all()
    assert torch.isfinite(gates.grad).all()


def input_gradients(head, tokens_BTD, dense_BN):
    """[i, j]: the largest derivative of output token i by input token j, over a one-block model."""
    inputs_BVA = head.inputs(tokens_BTD, dense_BN).detach().requires_grad_()
    (block,) = head.blocks
    weights = torch.randn(inputs_BVA.shape[-1], dtype=inputs_BVA.dtype)
    found = []
    for i in range(inputs_BVA.shape[1]):
        (gradient,) = torch.autograd.grad((block(inputs_BVA)[:, i] @ weights).sum(), inputs_BVA)
        found.append(gradient.abs().amax((0, 2)))
    return torch.stack(found), inputs_BVA.detach()


@settings(max_examples=25, deadline=None)
@given(kinds, shapes, st.integers(2, 4))
def test_a_closed_pair_gives_no_gradient_at_all_and_an_open_one_does(kind, shape, num_heads):
    head, tokens_BTD, dense_BN = a_head(shape, mask=kind, num_layers=1, num_heads=num_heads, top_k=2)
    gradient_VV, inputs_BVA = input_gradients(head, tokens_BTD, dense_BN)
    attention = head.blocks[0].attention
    scores_BHVV = scores_of(attention, inputs_BVA)
    anyhow_open_VV = open_pairs(attention.mask, scores_BHVV).amax((0, 1)) > 0
    assert (gradient_VV[~anyhow_open_VV] == 0).all()
    assert (gradient_VV[anyhow_open_VV] > 0).all()
    if kind == "causal":
        assert torch.equal(anyhow_open_VV, torch.ones_like(anyhow_open_VV).tril())


def scores_of(attention, inputs_BVA):
    query, key, _ = attention.query_key_value(inputs_BVA).chunk(3, dim=-1)
    heads = range(attention.num_heads)
    queries, keys = query.chunk(len(heads), dim=-1), key.chunk(len(heads), dim=-1)
    return torch.stack([queries[h] @ keys[h].mT / queries[h].shape[-1] ** 0.5 for h in heads], dim=1)


@torch.no_grad()
def plain_block(block, tokens_VA):
    """A block on one row, a token, a head and a pair at a time."""
    attention, num_heads = block.attention, block.attention.num_heads
    open_HVV = open_pairs(attention.mask, scores_of(attention, tokens_VA.unsqueeze(0)))[0]
    projected = [attention.query_key_value(token_A).chunk(3) for token_A in tokens_VA]
    crossed = []
    for i, token_A in enumerate(tokens_VA):
        from_heads = []
        for h in range(num_heads):
            query_C = projected[i][0].chunk(num_heads)[h]
            read = [j for j in range(len(tokens_VA)) if open_HVV[h, i, j]]
            keys = [projected[j][1].chunk(num_heads)[h] for j in read]
            exponentials = [torch.exp(query_C @ key_C / math.sqrt(len(query_C))) for key_C in keys]
            values = [projected[j][2].chunk(num_heads)[h] for j in read]
            from_heads.append(sum(e * v for e, v in zip(exponentials, values, strict=True)) / sum(exponentials))
        token_A = normalised(token_A + attention.output(torch.cat(from_heads)), block.attention_norm)
        first, _, second = block.feed_forward
        crossed.append(normalised(token_A + second(functional.relu(first(token_A))), block.feed_forward_norm))
    return torch.stack(crossed)


def normalised(values_A, norm):
    deviation = torch.sqrt(((values_A - values_A.mean()) ** 2).mean() + norm.eps)
    return (values_A - values_A.mean()) / deviation * norm.weight + norm.bias


@settings(max_examples=25, deadline=None)
@given(kinds, shapes, st.integers(1, 3), st.integers(1, 4))
def test_the_model_equals_a_plain_reference_row_by_row(kind, shape, num_layers, num_heads):
    head, tokens_BTD, dense_BN = a_head(shape, mask=kind, num_layers=num_layers, num_heads=num_heads, top_k=2)
    num_dense = shape[3]
    logits_B = head(tokens_BTD, dense_BN)
    for row, (tokens_TD, dense_N) in enumerate(zip(tokens_BTD, dense_BN, strict=True)):
        tokens = [head.lift(token_D) for token_D in tokens_TD]
        if num_dense:
            first, _, second = head.bottom
            tokens.insert(0, second(functional.relu(first(dense_N))))
        tokens_VA = torch.stack([t + identity for t, identity in zip(tokens, head.identity_VA, strict=True)])
        for block in head.blocks:
            tokens_VA = plain_block(block, tokens_VA)
        first, _, second = head.top
        expected = second(functional.relu(first(torch.cat([tokens_VA.flatten(), dense_N]))))
        torch.testing.assert_close(logits_B[row], expected[0])


@pytest.mark.parametrize("kind", sorted(MASKS))
@pytest.mark.parametrize("num_dense", [0, 2])
def test_one_token_is_enough(kind, num_dense):
    head, tokens_BTD, dense_BN = a_head((3, 1, 4, num_dense, 0), mask=kind)
    loss = functional.softplus(head(tokens_BTD, dense_BN)).mean() + head.penalty()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@settings(max_examples=15, deadline=None)
@given(shapes)
def test_the_task_reaches_the_logits_of_pairs_open_and_closed_and_never_the_diagonal(shape):
    head, tokens_BTD, dense_BN = a_head(shape, mask="learned", num_layers=1)
    head(tokens_BTD, dense_BN).square().sum().backward()
    gradient_HVV = head.blocks[0].attention.mask.logit_HVV.grad
    diagonal = torch.eye(gradient_HVV.shape[-1], dtype=torch.bool)
    assert (gradient_HVV[:, diagonal] == 0).all()
    crossed_BVA = head.blocks(head.inputs(tokens_BTD, dense_BN))
    units = head.top[0](torch.cat([crossed_BVA.flatten(1), dense_BN], dim=1))
    if (units > 0).any():  # else the top network is dead on these rows
        assert (gradient_HVV[:, ~diagonal] != 0).all()


def test_the_straight_through_gradient_is_the_sigmoids():
    mask = a_mask("learned", 1, 3)
    torch.nn.init.normal_(mask.logit_HVV)
    weights_HVV = torch.randn(1, 3, 3)
    (mask(torch.zeros(1, 1, 3, 3)) * weights_HVV).sum().backward()
    probability_HVV = torch.sigmoid(mask.logit_HVV.detach())
    expected_HVV = weights_HVV * probability_HVV * (1 - probability_HVV) * (1 - torch.eye(3))
    torch.testing.assert_close(mask.logit_HVV.grad, expected_HVV)


def test_the_penalty_is_the_mean_open_probability_of_all_blocks_pairs():
    head, *_ = a_head((1, 3, 4, 0, 7), mask="learned", num_layers=2, mask_penalty=0.25)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = 0.0
    for block in head.blocks:
        logit_HVV = block.attention.mask.logit_HVV
        probabilities = [torch.sigmoid(logit_HVV[h, i, j]).item() for h in range(2) for i, j in pairs]
        expected += 0.25 * sum(probabilities) / len(probabilities)
    assert head.penalty().item() == pytest.approx(expected)
    for kind in ("none", "causal", "topk"):
        assert a_head((1, 3, 4, 0, 7), mask=kind)[0].penalty().item() == 0


@pytest.mark.parametrize(("penalty", "closed"), [(100.0, True), (0.0, False)])
def test_a_large_penalty_closes_the_pairs(penalty, closed):
    head, tokens_BTD, dense_BN = a_head((16, 4, 8, 0, 1), mask="learned", mask_penalty=penalty)
    masks = [block.attention.mask for block in head.blocks]
    for mask in masks:
        torch.nn.init.constant_(mask.logit_HVV, 0.1)
    label_B = (tokens_BTD[:, 0, 0] * tokens_BTD[:, 1, 0] > 0).double()
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(120):
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(head(tokens_BTD, dense_BN), label_B)
        (loss + head.penalty()).backward()
        optimiser.step()
    shares = [mask(torch.zeros(1, 2, 4, 4)).detach().mean().item() for mask in masks]
    assert (max(shares) == 0.25) if closed else (min(shares) > 0.25)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"mask": "learnt"}, "no mask named 'learnt': did you mean 'learned'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"mask_penalty": -1.0}, "penalty is -1.0"),
        ({"mask_logit": math.inf}, "logit is inf"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"feed_forward": 0}, "feed_forward is 0"),
        ({"bottom": [0]}, "bottom is"),
        ({"attention_width": 9}, "attention_width is 9: give a multiple of num_heads"),
        ({"depth": 2}, "unknown key 'depth'"),
    ],
)
def test_a_bad_setting_is_a_sentence(own, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        head_config("adrec", hidden=(8,), dropout=0.0, settings=own)


@pytest.mark.parametrize(("own", "width", "inside"), [({}, 5, 8), ({"num_heads": 3}, 16, 18), ({}, 16, 16)])
def test_the_width_inside_the_blocks_suits_the_heads(own, width, inside):
    head = a_head((1, 2, width, 0, 0), **own)[0]
    assert head.identity_VA.shape == (2, inside)
    wide = a_head((1, 2, width, 0, 0), **own, attention_width=24)[0]
    assert wide.identity_VA.shape == (2, 24)


def test_dropout_drops_in_training_alone():
    config = head_config("adrec", hidden=(64,), dropout=0.5)
    head = build_head(config, 3, 8, 1)
    arguments = torch.randn(4, 3, 8), torch.randn(4, 1)
    assert not torch.equal(head(*arguments), head(*arguments))
    head.eval()
    assert torch.equal(head(*arguments), head(*arguments))
