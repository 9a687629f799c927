"""Sparse gradients against dense ones, and the table optimisers against torch's and their equation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from narrowcast.components.train.optimisers import EPSILON, LazyAdam, Optimisers, RowWiseAdagrad
from narrowcast.components.train.rows import coalesced, look_up_rows, sum_by_id


def drawn(seed, num_rows=12, width=3, num_ids=20):
    generator = torch.Generator().manual_seed(seed)
    table = nn.Parameter(torch.randn(num_rows, width, generator=generator))
    ids = torch.randint(0, num_rows, (num_ids,), generator=generator)
    return table, ids, torch.randn(num_ids, width, generator=generator)


def train(optimiser, table, steps=6, touch_all=False, dense=False, seed=0):
    """Steps on rows drawn at random; the ids touched."""
    touched = set()
    for step in range(steps):
        _, ids, weights = drawn(seed * 100 + step, *table.shape)
        if touch_all:
            ids = torch.cat([ids, torch.arange(len(table))])
            weights = torch.cat([weights, torch.ones(table.shape)])
        optimiser.zero_grad()
        rows = table[ids] if dense else look_up_rows(table, ids)
        (rows * weights).sum().backward()
        optimiser.step()
        touched |= set(ids.tolist())
    return touched


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 9), st.integers(0, 80))
def test_the_sparse_gradient_equals_the_dense_one(seed, num_rows, width, num_ids):
    table, ids, weights = drawn(seed, num_rows, width, num_ids)
    (table[ids] * weights).sum().backward()
    dense, table.grad = table.grad, None
    rows = look_up_rows(table, ids)
    assert torch.equal(rows, table[ids])
    (rows * weights).sum().backward()
    gradient = coalesced(table.grad)
    torch.testing.assert_close(gradient.to_dense(), dense)
    assert gradient.indices()[0].tolist() == sorted(set(ids.tolist()))


def test_two_backward_passes_leave_their_sum():
    table, ids, weights = drawn(0)
    for part in (slice(0, 7), slice(7, None)):
        (look_up_rows(table, ids[part]) * weights[part]).sum().backward()
    torch.testing.assert_close(coalesced(table.grad).to_dense(), sum_by_id(ids, weights, len(table)).to_dense())


def test_lazy_adam_equals_adam_where_every_step_touches_all_rows():
    ours, theirs = drawn(1)[0], drawn(1)[0]
    train(LazyAdam([ours], 0.01, 0.1), ours, touch_all=True)
    train(torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1), theirs, touch_all=True, dense=True)
    torch.testing.assert_close(ours, theirs)


def test_lazy_adam_equals_torchs_sparse_adam():
    """But for where epsilon is added, which gradients of order 1 do not notice."""
    ours, theirs = drawn(2)[0], drawn(2)[0]
    train(LazyAdam([ours], 0.01), ours)
    train(torch.optim.SparseAdam([theirs], lr=0.01), theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_row_wise_adagrad_is_its_equation():
    table = drawn(3)[0]
    expected, sums = table.detach().clone(), [0.0] * len(table)
    optimiser = RowWiseAdagrad([table], 0.1, weight_decay=0.5)
    for step in range(5):
        _, ids, weights = drawn(step)
        optimiser.zero_grad()
        (look_up_rows(table, ids) * weights).sum().backward()
        optimiser.step()
        for row in set(ids.tolist()):
            gradient = sum(weights[i] for i in range(len(ids)) if ids[i] == row) + 0.5 * expected[row]
            sums[row] += (gradient**2).mean().item()
            expected[row] -= 0.1 * gradient / (sums[row] ** 0.5 + EPSILON)
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize("kind", [LazyAdam, RowWiseAdagrad])
def test_untouched_rows_keep_every_bit(kind):
    table = nn.Parameter(torch.randn(500, 4, generator=torch.Generator().manual_seed(0)))
    before = table.detach().clone()
    touched = train(kind([table], 0.1, 0.01), table, steps=4)
    moved = (table != before).any(1).nonzero().squeeze(1).tolist()
    assert moved == sorted(touched)
    assert 0 < len(moved) < 100


@pytest.mark.parametrize("kind", [LazyAdam, RowWiseAdagrad])
def test_going_on_from_saved_moments_changes_no_bit(kind):
    def fresh():
        table, head = drawn(5)[0], nn.Parameter(torch.ones(3))
        return table, Optimisers(kind([table], 0.1, 0.01), torch.optim.Adam([head], lr=0.1, fused=True))

    whole, optimisers = fresh()
    train(optimisers, whole, seed=1)
    train(optimisers, whole, seed=2)
    table, first = fresh()
    train(first, table, seed=1)
    resumed, second = fresh()
    with torch.no_grad():
        resumed.copy_(table)
    second.load_tensors({name: value.clone() for name, value in first.tensors().items()})
    train(second, resumed, seed=2)
    assert torch.equal(resumed, whole)


def test_rates_are_scaled_from_their_first_values():
    table, head = drawn(6)[0], nn.Parameter(torch.ones(3))
    optimisers = Optimisers(LazyAdam([table], 0.5), torch.optim.Adam([head], lr=0.25))
    for factor in (0.5, 0.1):
        optimisers.scale_rates(factor)
    assert [group["lr"] for part in (optimisers.tables, optimisers.dense) for group in part.param_groups] == [
        pytest.approx(0.05),
        pytest.approx(0.025),
    ]
