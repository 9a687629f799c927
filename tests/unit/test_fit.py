"""Training in this process on the tiny data set."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train import fit as fit_module
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit, fresh_state, optimisers, shuffled_batches, train_epoch
from narrowcast.components.train.heads import backbones
from narrowcast.components.train.histories import histories
from narrowcast.components.train.metrics import all_metrics
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.precision import has_bfloat16
from narrowcast.components.train.predict import predict
from narrowcast.components.train.run import train_from_plan, train_full
from narrowcast.components.train.workers import Workers
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest

CONFIG = TrainConfig(epochs=12, batch_size=128, learning_rate=0.01, model=ModelConfig(hidden=(16,)))


@pytest.fixture
def data(tiny_encoded):
    return EncodedData(tiny_encoded)


@pytest.fixture
def plan(data):
    return full_plan(data.layout.table_rows, 8)


def quiet(line):
    pass


def uniform_plan(data, bits):
    whole = full_plan(data.layout.table_rows, 8)
    tables = {n: replace(t, blocks=(replace(t.blocks[0], bits=bits),)) for n, t in whole.tables.items()}
    return replace(whole, tables=tables)


@pytest.mark.parametrize("backbone", backbones())
def test_every_backbone_learns_and_repeats_to_the_bit(backbone, tiny_encoded, tmp_path):
    config = replace(CONFIG, model=replace(CONFIG.model, backbone=backbone))
    for name in ("one", "two"):
        train_full(tiny_encoded, config, tmp_path / name, width=8, inner_width=0)
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["test"]["auc"] > 0.65
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    train_full(tiny_encoded, replace(config, seed=1), tmp_path / "other", width=8, inner_width=0)
    assert digest(tmp_path / "other") != digest(tmp_path / "one")


def test_the_checkpoint_is_the_best_epoch_and_its_metrics_are_the_models(tiny_encoded, data, plan, tmp_path):
    plan_directory = tmp_path / "plan"
    plan.save(plan_directory / "plan.json")
    train_from_plan(tiny_encoded, plan_directory, CONFIG, tmp_path / "model")
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    best = max(metrics["curves"], key=lambda entry: entry["validation_auc"])
    assert metrics["best_epoch"] == best["epoch"]
    assert metrics["validation"]["auc"] == best["validation_auc"]
    assert metrics["resumed_from_epoch"] is None
    assert metrics["stored_bytes"] == metrics["full_bytes"] == plan.stored_bytes()
    model = load_checkpoint(tmp_path / "model")
    for name in ("validation", "test"):
        split = data.split(name)
        assert metrics[name] == pytest.approx(all_metrics(split.label_B, predict(model, split), split.group_B))
    record = StepRecord.load(tmp_path / "model")
    assert record.step == "retrain"
    assert record.rows_in == record.rows_out == len(data.split("train"))
    assert record.metrics["test_auc"] == metrics["test"]["auc"]


def test_predict_does_not_depend_on_the_batch_size_and_keeps_the_mode(data, plan):
    model = CTRModel(data.layout, plan, replace(CONFIG.model, dropout=0.5), seed=0).train()
    split = data.split("test")
    np.testing.assert_allclose(predict(model, split, 7), predict(model, split), rtol=1e-5)
    assert model.training
    assert predict(model, split).dtype == np.float32
    assert len(predict(model, split)) == len(split)


def test_going_on_from_a_saved_state_changes_no_bit(data, plan, tmp_path):
    config = replace(CONFIG, epochs=5, model=replace(CONFIG.model, dropout=0.2), patience=5)
    whole = fit(data, plan, config, tell=quiet)

    def fresh():
        return fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)

    saved = []

    def save(state):
        saved.append(tmp_path / str(state.epoch))
        saved[-1].mkdir()
        state.save(saved[-1])

    fit(data, plan, config, state=fresh(), on_epoch=save, tell=quiet)
    resumed = fresh()
    resumed.load(saved[1])
    assert resumed.epoch == 2
    resumed = fit(data, plan, config, state=resumed, tell=quiet)
    assert resumed.curves == whole.curves
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_workers_shares_are_the_batch(data, size):
    split = data.split("train")
    shares = [list(shuffled_batches(split, CONFIG, 3, Workers(rank=rank, size=size))) for rank in range(size)]
    rows_seen = 0
    for parts in zip(*shares, strict=True):
        num_rows = parts[0][2]
        assert all(part[2] == num_rows for part in parts)
        assert sum(len(part[0]) for part in parts) == num_rows
        rows_seen += num_rows
    assert rows_seen == len(split)
    labels = np.concatenate([label for share in shares for _, label, _ in share])
    assert labels.sum() == split.label_B.sum()


def test_the_rows_are_shuffled_by_seed_and_epoch(data):
    split = data.split("train")

    def first(config, epoch):
        return next(iter(shuffled_batches(split, config, epoch)))[0].ids_BF.tolist()

    assert first(CONFIG, 0) == first(CONFIG, 0)
    assert first(CONFIG, 0) != first(CONFIG, 1)
    assert first(CONFIG, 0) != first(replace(CONFIG, seed=1), 0)


def test_patience_ends_the_training_and_the_best_epoch_is_kept(data, plan):
    config = replace(CONFIG, epochs=60, learning_rate=0.05, patience=2)
    state = fit(data, plan, config, tell=quiet)
    assert state.epoch == state.best_epoch + 2
    split = data.split("validation")
    found = all_metrics(split.label_B, predict(state.model, split), split.group_B)["auc"]
    assert found == pytest.approx(state.best["validation_auc"])


def test_weight_decay_shrinks_the_rows_and_spares_the_rest(data):
    plan = full_plan(data.layout.table_rows, 8, inner_width=12)
    model = CTRModel(data.layout, plan, CONFIG.model, seed=0)
    both = optimisers(model, replace(CONFIG, weight_decay=0.1))
    decays = {
        id(p): group["weight_decay"]
        for part in (both.tables, both.dense)
        for group in part.param_groups
        for p in group["params"]
    }
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if name.endswith("weight_Rk") else 0)


@pytest.mark.parametrize("optimiser", ["lazy_adam", "rowwise_adagrad"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_every_optimiser_and_schedule_learns_and_resumes_to_the_bit(optimiser, schedule, data, plan, tmp_path):
    config = replace(
        CONFIG, epochs=5, patience=5, table_optimiser=optimiser, table_learning_rate=0.05, schedule=schedule
    )
    config = replace(config, warmup_steps=20)
    whole = fit(data, plan, config, on_epoch=lambda state: state.epoch == 3 and state.save(tmp_path), tell=quiet)
    assert whole.best["validation_auc"] > 0.6
    resumed = fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)
    resumed.load(tmp_path)
    assert fit(data, plan, config, state=resumed, tell=quiet).curves == whole.curves
    assert fit(data, plan, replace(config, schedule="constant", warmup_steps=0), tell=quiet).curves != whole.curves


@pytest.mark.parametrize(
    "model",
    [{"backbone": name} for name in backbones()] + [{"history": name} for name in histories()],
    ids=lambda model: next(iter(model.values())),
)
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_batch(model, data):
    """Every row of the data in one step."""
    plan = full_plan(data.layout.table_rows, 8, inner_width=12)

    def step(number):
        config = replace(CONFIG, accumulate=number, batch_size=10**6, model=replace(CONFIG.model, **model))
        state = fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)
        loss = train_epoch(state, data.split("train"), config)
        return loss, {name: parameter.grad for name, parameter in state.model.named_parameters()}

    (loss, gradients), (parted_loss, parted) = step(1), step(3)
    assert parted_loss == pytest.approx(loss, rel=1e-6)
    assert any(gradient.is_sparse for gradient in gradients.values() if gradient is not None)
    for name, gradient in gradients.items():
        if gradient is None:
            assert parted[name] is None
            continue
        found, expected = parted[name].to_dense(), gradient.to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_the_penalty_of_a_head_moves_it_and_stays_out_of_the_curves(data, plan):
    def open_share(weight):
        model = replace(CONFIG.model, backbone="adrec", settings={"mask": "learned", "mask_penalty": weight})
        state = fit(data, plan, replace(CONFIG, epochs=2, model=model), tell=quiet)
        assert state.curves[-1]["train_logloss"] < 1
        return state.model.scorer.head.penalty().item() / weight

    assert open_share(100.0) < open_share(1e-6) - 0.03


def test_all_cores_learn_too(data, plan):
    state = fit(data, plan, replace(CONFIG, deterministic=False), tell=quiet)
    assert state.best["validation_auc"] == pytest.approx(
        fit(data, plan, CONFIG, tell=quiet).best["validation_auc"], 0.05
    )


def test_bfloat16_needs_a_processor_that_has_it(data, plan):
    if has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has bfloat16")
    with pytest.raises(NarrowcastError, match="set precision to float32"):
        fit(data, plan, replace(CONFIG, precision="bfloat16"), tell=quiet)


def test_bfloat16_trains_beside_float32_and_falls_back_where_it_costs(data, plan, monkeypatch, tmp_path):
    """Computed here on any processor, in hardware or not."""
    monkeypatch.setattr(fit_module, "demand_precision", lambda *_: None)
    config = replace(CONFIG, epochs=4, precision="bfloat16")
    lines = []
    monkeypatch.setattr(fit_module, "MOST_AUC_LOSS", 1.0)
    kept = fit(data, plan, config, tell=quiet)
    assert kept.precision == "bfloat16"
    plain = fit(data, plan, replace(config, precision="float32"), tell=quiet)
    assert kept.curves != plain.curves
    assert kept.best["validation_auc"] == pytest.approx(plain.best["validation_auc"], abs=0.03)
    assert all(value.dtype == torch.float32 for value in kept.model.state_dict().values())
    monkeypatch.setattr(fit_module, "MOST_AUC_LOSS", -1.0)
    fallen = fit(data, plan, config, on_epoch=lambda state: state.save(tmp_path), tell=lines.append)
    assert fallen.precision == "float32"
    assert "training goes on in float32" in lines[1]
    loaded = fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)
    loaded.load(tmp_path)
    assert loaded.precision == "float32"


def test_fit_leaves_torch_as_it_found_it(data, plan):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fit(data, plan, replace(CONFIG, epochs=1), tell=quiet)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_training_aware_of_rounding_learns_resumes_and_repeats_to_the_bit(bits, data, tmp_path):
    plan = uniform_plan(data, bits)
    config = replace(CONFIG, epochs=3, quantisation_aware=True)
    whole = fit(data, plan, config, tell=quiet)
    assert whole.best["validation_auc"] > 0.6
    fit(data, plan, replace(config, epochs=1), on_epoch=lambda state: state.save(tmp_path), tell=quiet)
    resumed = fresh_state(CTRModel(data.layout, plan, config.model, config.seed), config)
    resumed.load(tmp_path)
    assert fit(data, plan, config, state=resumed, tell=quiet).curves == whole.curves
    unaware = fit(data, plan, replace(config, quantisation_aware=False), tell=quiet)
    assert unaware.curves != whole.curves


def test_rounding_of_float32_changes_no_bit(data, plan):
    config = replace(CONFIG, epochs=2)
    plain, aware = (fit(data, plan, replace(config, quantisation_aware=on), tell=quiet) for on in (False, True))
    assert plain.curves == aware.curves
    assert not aware.model.embedding.rounds


def test_a_model_without_a_plan_cannot_be_trained_aware_of_rounding(data, plan):
    with pytest.raises(NarrowcastError, match="Linear has no tables of a plan to round"):
        fit(data, plan, replace(CONFIG, quantisation_aware=True), model=torch.nn.Linear(1, 1), tell=quiet)


def test_bad_settings_and_bad_data_are_sentences(tiny_encoded, data, plan, tmp_path):
    for settings, words in (
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"batch_size": 2, "num_workers": 3}, "less than a row"),
        ({"batch_size": 2, "accumulate": 3}, "less than a row"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"table_learning_rate": -1.0}, "table_learning_rate is -1.0"),
        ({"num_workers": 1, "min_workers": 2}, "at most num_workers"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"table_optimiser": "adagrad"}, "rowwise_adagrad"),
        ({"tables": "torchrek"}, "did you mean 'torchrec'"),
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        (
            {"tables": "torchrec", "table_optimiser": "rowwise_adagrad", "quantisation_aware": True},
            "sharded by TorchRec are never rounded",
        ),
    ):
        with pytest.raises(NarrowcastError, match=words):
            TrainConfig(**settings)
    with pytest.raises(NarrowcastError, match="holds no encoded data"):
        train_full(tmp_path, CONFIG, tmp_path / "model", width=8, inner_width=0)
    with pytest.raises(NarrowcastError, match="lower learning_rate"):
        train_full(tiny_encoded, replace(CONFIG, learning_rate=1e30), tmp_path / "model", width=8, inner_width=0)
    with pytest.raises(NarrowcastError, match="lower learning_rate"):  # the only step comes before the loss is none
        fit(data, plan, replace(CONFIG, epochs=1, learning_rate=1e30, batch_size=10**6), tell=quiet)
    one_class = tmp_path / "one_class"
    shutil.copytree(tiny_encoded, one_class)
    np.save(one_class / "validation" / "label.npy", np.ones_like(data.split("validation").label_B))
    with pytest.raises(NarrowcastError, match="have the same label"):
        train_full(one_class, CONFIG, tmp_path / "model", width=8, inner_width=0)
    empty = tmp_path / "empty"
    shutil.copytree(tiny_encoded, empty)
    for file in (empty / "train").glob("*.npy"):
        np.save(file, np.load(file)[:0])
    with pytest.raises(NarrowcastError, match="train split has no rows"):
        train_full(empty, CONFIG, tmp_path / "model", width=8, inner_width=0)
    assert not (tmp_path / "model").exists()
