"""Requests scored together beside rows scored one at a time, and what the cache of histories may hold."""

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.compact.packed import PackedNetwork
from narrowcast.components.compact.packed_table import table_tensors
from narrowcast.components.data.encoded import PAD, Batch, Layout
from narrowcast.components.serve.amortised import Ranker
from narrowcast.components.serve.history_cache import ENTRY_BYTES, history_key
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import full_plan

LAYOUT = Layout(
    categorical=("user_id", "city", "item_id"),
    numeric=("age", "price"),
    sequences=("tags", "history"),
    table_of={"user_id": "user_id", "city": "city", "item_id": "item_id", "tags": "tags", "history": "item_id"},
    table_rows={"user_id": 9, "city": 4, "item_id": 12, "tags": 5},
)
LENGTH = 7
AMORTISED = ("append", "din", "mean", "none")
BACKBONES = ("deepfm", "dcnv2", "adrec", "finalmlp")
CLOSE = {"rtol": 1e-5, "atol": 1e-7}
TOGETHER = 1 << 20


@dataclass
class Packed:
    """What a ranker reads of a packed model."""

    network: PackedNetwork


def trained(history="append", backbone="deepfm", layout=LAYOUT, seed=0) -> CTRModel:
    """With every parameter of the history encoder at random, and tables whose rows differ enough to matter."""
    own_settings = {"num_layers": 2, "model_width": 8, "max_positions": 4} if history in ("append", "concat") else {}
    config = ModelConfig(backbone=backbone, hidden=(8,), history=history, history_settings=own_settings, init_std=0.5)
    model = CTRModel(layout, full_plan(layout.table_rows, 4), config, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.scorer.history.parameters() if model.scorer.history else ():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def packed_model(*arguments, **options) -> Packed:
    model = trained(*arguments, **options)
    tables = {f"{name}.{k}": v for name, t in model.embedding.tables.items() for k, v in table_tensors(t).items()}
    return Packed(PackedNetwork(model.layout, model.plan, model.scorer, tables).eval())


MODELS = {name: packed_model(name) for name in histories()}


def padded_ids(rng, num_ids, lengths, longest):
    ids_BL = rng.integers(0, num_ids, (len(lengths), longest))
    return np.where(np.arange(longest) < np.asarray(lengths)[:, None], ids_BL, PAD).astype(np.int32)


def request(rng, num_rows, lengths, layout=LAYOUT) -> Batch:
    """Candidates of one user where there is one length, of as many users where there is a length for each."""
    sequences = {
        "tags": padded_ids(rng, 5, rng.integers(0, 4, num_rows), 3),
        "history": padded_ids(rng, 12, lengths, LENGTH),
    }
    ids = [rng.integers(0, layout.table_rows[name], num_rows) for name in layout.categorical]
    return Batch(
        ids_BF=np.stack(ids, axis=1).astype(np.int32),
        dense_BN=rng.normal(size=(num_rows, len(layout.numeric))).astype(np.float32),
        sequences={name: sequences[name] for name in layout.sequences},
    )


@st.composite
def requests(draw):
    """Requests of one user or of several, with histories of every length from none to all."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        num_rows = draw(st.integers(1, 6))
        num_histories = draw(st.sampled_from((1, num_rows)))
        found.append(request(rng, num_rows, rng.integers(0, LENGTH + 1, num_histories)))
    return found


@torch.inference_mode()
def one_by_one(packed, batch):
    """Every row scored alone, with its own copy of the history, by the model as trained."""
    ids_BF, dense_BN, sequences = to_tensors(batch)
    scores = []
    for b in range(len(batch)):
        own = {name: ids_BL[b % len(ids_BL)].unsqueeze(0) for name, ids_BL in sequences.items()}
        scores.append(torch.sigmoid(packed.network(ids_BF[b : b + 1], dense_BN[b : b + 1], own)))
    return torch.cat(scores).numpy()


def ranker(packed, **options):
    return Ranker(packed, **{"cache_bytes": 1 << 20, "micro_batch": 3} | options)


def assert_close(found, expected, **tolerance):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, **tolerance or CLOSE)


# Beside one by one


@pytest.mark.parametrize("history", histories())
@settings(max_examples=20, deadline=None)
@given(requests(), st.integers(1, 30))
def test_together_as_one_by_one(history, batches, micro_batch):
    packed = MODELS[history]
    expected = [one_by_one(packed, batch) for batch in batches]
    own = ranker(packed, micro_batch=micro_batch)
    assert_close(own.score(batches), expected)
    assert_close(own.score(batches), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
@settings(max_examples=20, deadline=None)
@given(requests(), st.integers(1, 30))
def test_with_every_kind_of_head(backbone, batches, micro_batch):
    packed = packed_model("append", backbone)
    expected = [one_by_one(packed, batch) for batch in batches]
    assert_close(ranker(packed, micro_batch=micro_batch).score(batches), expected)


@pytest.mark.parametrize("history", histories())
@torch.inference_mode()
def test_in_float64_logits_differ_by_its_rounding_alone(history):
    """On the trained model's own tables, as a packed model's rows are float32."""
    layout = replace(LAYOUT, numeric=())
    model = trained(history, layout=layout).double()
    rng = np.random.default_rng(0)
    batches = [request(rng, 12, [length], layout) for length in range(LENGTH + 1)]
    together: list[torch.Tensor] = []
    own = ranker(Packed(SimpleNamespace(lookup=model.embedding, scorer=model.scorer)), micro_batch=20)
    hook = model.scorer.head.register_forward_hook(lambda _, __, logit_B: together.append(logit_B))
    own.score(batches)
    hook.remove()
    for logit_B, batch in zip(torch.cat(together).split(12), batches, strict=True):
        ids_BF, dense_BN, sequences = to_tensors(batch)
        for b, logit in enumerate(logit_B):
            own_row = {name: ids_BL[b % len(ids_BL)].unsqueeze(0) for name, ids_BL in sequences.items()}
            alone = model(ids_BF[b : b + 1], dense_BN[b : b + 1], own_row)
            torch.testing.assert_close(alone[0], logit, rtol=1e-12, atol=1e-13)


@settings(max_examples=15, deadline=None)
@given(requests())
def test_a_model_without_sequences(batches):
    layout = replace(LAYOUT, sequences=("tags",), table_of={k: v for k, v in LAYOUT.table_of.items() if k != "history"})
    packed = packed_model(layout=layout)
    batches = [replace(batch, sequences={"tags": batch.sequences["tags"]}) for batch in batches]
    own = ranker(packed)
    assert_close(own.score(batches), [one_by_one(packed, batch) for batch in batches])
    assert own.hits == own.misses == own.cached_bytes == 0


def test_the_models_own_scores_take_one_history_for_all_rows():
    rng = np.random.default_rng(0)
    batch = request(rng, 9, [4])
    batch = replace(batch, sequences={**batch.sequences, "tags": batch.sequences["tags"][:1]})
    for packed in MODELS.values():
        with torch.inference_mode():
            whole = torch.sigmoid(packed.network(*to_tensors(batch))).numpy()
        assert_close([whole], [one_by_one(packed, batch)])
        assert_close(ranker(packed).score([batch]), [one_by_one(packed, batch)])


@pytest.mark.parametrize("history", histories())
@pytest.mark.parametrize("micro_batch", [1, 3, 17, TOGETHER])
def test_the_size_of_micro_batches_does_not_matter(history, micro_batch):
    rng = np.random.default_rng(1)
    batches = [request(rng, 17, [5]), request(rng, 8, [0]), request(rng, 4, [7, 0, 2, 7])]
    expected = ranker(MODELS[history], micro_batch=TOGETHER).score(batches)
    assert_close(ranker(MODELS[history], micro_batch=micro_batch).score(batches), expected)


# Independence


@pytest.mark.parametrize("history", histories())
def test_neither_other_candidates_nor_other_requests_matter(history):
    rng = np.random.default_rng(2)
    batch, other = request(rng, 12, [6]), request(rng, 30, [3])
    own = ranker(MODELS[history], micro_batch=5)
    (alone,) = own.score([batch])
    for rows in (slice(0, 1), slice(4, 9), np.array([11, 2])):
        assert_close(own.score([batch.take(rows)]), [alone[rows]])
    assert_close(own.score([other, batch, other])[1:2], [alone])
    assert_close(own.score([batch, other])[:1], [alone])


@pytest.mark.parametrize("history", histories())
def test_the_order_of_candidates_does_not_matter(history):
    batch = request(np.random.default_rng(3), 12, [6])
    order = np.random.default_rng(4).permutation(12)
    own = ranker(MODELS[history])
    assert_close(own.score([batch.take(order)]), [own.score([batch])[0][order]])


# The cache


def weight(key):
    """Of a kept history of `append`: keys and values of two blocks of width 8, a mask where it is empty, key, entry."""
    length = len(key) // 4
    return max(length, 1) * 2 * 2 * 8 * 4 + (length == 0) + sys.getsizeof(key) + ENTRY_BYTES


def counts(own):
    return own.hits, own.misses


@pytest.mark.parametrize("history", AMORTISED)
def test_a_kept_history_scores_as_a_fresh_one(history):
    rng = np.random.default_rng(5)
    batches = [request(rng, 6, [length]) for length in (0, 1, LENGTH)]
    own = ranker(MODELS[history])
    fresh = own.score(batches)
    assert counts(own) == (0, 3)
    size = own.cached_bytes
    assert_close(own.score(batches[::-1])[::-1], fresh)
    assert counts(own) == (3, 3)
    assert own.cached_bytes == size > 0


def test_padding_and_requests_at_once_share_a_history():
    rng = np.random.default_rng(6)
    short = request(rng, 3, [2])
    padded = np.pad(short.sequences["history"], ((0, 0), (0, 4)), constant_values=PAD)
    longer = replace(short, sequences={**short.sequences, "history": padded})
    own = ranker(MODELS["append"])
    own.score([short, short])
    assert counts(own) == (1, 1)
    assert_close(own.score([longer]), [one_by_one(MODELS["append"], short)])
    assert counts(own) == (2, 1)


@pytest.mark.parametrize(
    "moved_on",
    [[3, 1, 4, 1], [1, 4, 1, 5], [1, 3, 4], [3, 1], [0, 3, 1, 4], [0], []],
    ids=["one newer", "oldest gone", "other order", "one fewer", "unknown older", "unknown alone", "none"],
)
def test_a_history_that_moved_on_is_read_anew(moved_on):
    batch = request(np.random.default_rng(7), 5, [0])

    def with_history(ids):
        padded = np.array([ids + [PAD] * (LENGTH - len(ids))], np.int32)
        return replace(batch, sequences={**batch.sequences, "history": padded})

    own = ranker(MODELS["append"])
    own.score([with_history([3, 1, 4])])
    assert_close(own.score([with_history(moved_on)]), [one_by_one(MODELS["append"], with_history(moved_on))])
    assert counts(own) == (0, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40_000), st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=8))
def test_the_cache_is_never_over_its_bound_and_holds_the_latest(max_bytes, calls):
    """Beside a list of all histories in the order of their last use, kept from its end while they fit."""
    rng = np.random.default_rng(0)
    users = [request(rng, 2, [length % (LENGTH + 1)]) for length in range(31)]
    own = ranker(MODELS["append"], cache_bytes=max_bytes)
    kept: list[bytes] = []
    for call in calls:
        keys = [history_key(users[user].sequences["history"]) for user in call]
        known = [key for key in keys if key in kept]
        new = [key for key in dict.fromkeys(keys) if key not in kept]
        expected = (own.hits + len(keys) - len(new), own.misses + len(new))
        for key in known:
            kept.remove(key)
            kept.append(key)
        for key in new:
            if weight(key) <= max_bytes:
                while sum(map(weight, kept)) + weight(key) > max_bytes:
                    kept.pop(0)
                kept.append(key)
        own.score([users[user] for user in call])
        assert counts(own) == expected
        assert own.cached_bytes == sum(map(weight, kept)) <= max_bytes
        assert list(own.cache.states) == kept


def test_a_kept_state_keeps_no_other_memory_alive():
    rng = np.random.default_rng(8)
    own = ranker(MODELS["append"], cache_bytes=1 << 30)
    own.score([request(rng, 2, [LENGTH]) for _ in range(20)])
    for state in own.cache.states.values():
        tensors = (*state.by_item, *state.by_user)
        assert state.num_bytes() == sum(tensor.nbytes for tensor in tensors) == LENGTH * 2 * 2 * 8 * 4
