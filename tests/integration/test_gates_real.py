"""The evaluation step on real artifacts: every gate, and a bad model that fails without raising."""

import shutil

import pytest

from narrowcast import objects
from narrowcast.components.evaluate.champion import fetched_champion
from narrowcast.components.evaluate.gates import evaluate
from narrowcast.components.evaluate.served import PARITY_ROWS
from narrowcast.components.serve import process
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json, write_json

GATES = {"quality_full", "quality_champion", "bytes", "parity_packed", "latency", "parity_served", "server"}


def judge(tiny_run, target, **changed):
    arguments = {
        "encoded": tiny_run.encoded,
        "frame": tiny_run.frame,
        "full_model": tiny_run.full_model,
        "compact_model": tiny_run.compact_model,
        "packed_model": tiny_run.packed_model,
        "feature_store": tiny_run.feature_store,
        "plan": tiny_run.plan,
        "champion": "",
        "max_auc_loss": 0.2,
        "max_latency_ms": 2000.0,
        "seed": 0,
        "target": target,
        **changed,
    }
    evaluate(**{k: v if isinstance(v, float | int) else str(v) for k, v in arguments.items()})
    result = read_json(target / "evaluation.json")
    return result, {gate["name"]: gate for gate in result["gates"]}


def test_a_good_model_passes_every_gate(tiny_run, tmp_path, monkeypatch):
    started = []
    real_start = process.start
    monkeypatch.setattr(process, "start", lambda *a, **k: started.append(real_start(*a, **k)) or started[-1])
    result, gates = judge(tiny_run, tmp_path / "evaluation", champion=tiny_run.packed_model)
    assert set(gates) == GATES
    assert result["passed"], [gate["sentence"] for gate in result["gates"] if not gate["passed"]]
    assert gates["quality_champion"]["value"] == 0.0
    assert gates["parity_served"]["value"] <= 1e-6
    trained = read_json(tiny_run.compact_model / "metrics.json")["test"]
    assert set(result["metrics"]["packed"]) == set(trained)
    assert result["metrics"]["compact"] == trained
    assert result["metrics"]["champion"] == result["metrics"]["packed"]
    plan_bytes = read_json(tiny_run.plan / "search.json")["budget_bytes"]
    assert result["bytes"]["packed"] == result["bytes"]["budget"] == plan_bytes
    assert result["bytes"]["full"] == read_json(tiny_run.packed_model / "manifest.json")["full_bytes"]
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    record = StepRecord.load(tmp_path / "evaluation")
    assert record.rows_in == record.rows_out == sum(int(row["rows"]) for row in result["calibration_curve"])
    assert record.rows_in < PARITY_ROWS
    assert f"{record.rows_in:,} test rows" in gates["parity_served"]["sentence"], "every test row was asked"
    assert read_json(tmp_path / "evaluation" / "metrics.json")["auc_full"] == result["metrics"]["full"]["auc"]
    assert len(started) == 1
    assert not process.is_running(started[0].pid)


def test_a_champion_on_object_storage_is_the_one_that_serves_by_now(tiny_run, tmp_path, s3):
    state, model = f"{s3}/home/endpoints/default.json", f"{s3}/home/endpoints/default/1/model"
    with fetched_champion(state) as folder:
        assert folder == "", "nothing is deployed"
    objects.put(tiny_run.packed_model, model)
    objects.write_json(state, {"model_path": model})
    result, gates = judge(tiny_run, tmp_path / "evaluation", champion=state)
    assert gates["quality_champion"]["value"] == 0.0
    assert result["champion_md5"] == digest(tiny_run.packed_model)
    objects.delete(model)
    with pytest.raises(NarrowcastError, match=f"cannot read {model}"):
        judge(tiny_run, tmp_path / "again", champion=state)
    assert not (tmp_path / "again").exists(), "no model is judged as if nothing served"


def test_a_damaged_model_fails_its_gates_and_the_step_ends_well(tiny_run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_run.packed_model, damaged)
    (damaged / "tables.safetensors").write_bytes(b"not tensors")
    result, gates = judge(tiny_run, tmp_path / "evaluation", packed_model=damaged, champion=tiny_run.packed_model)
    assert not result["passed"]
    for name in GATES - {"bytes"}:
        assert not gates[name]["passed"], name
        assert "tables.safetensors" in gates[name]["sentence"], gates[name]["sentence"]
    assert result["metrics"]["packed"] is None
    assert result["metrics"]["full"] is not None
    assert result["latency_ms"] == {}


def test_a_model_over_the_budget_and_the_latency_says_so(tiny_run, tmp_path):
    plan = tmp_path / "plan"
    shutil.copytree(tiny_run.plan, plan)
    write_json(plan / "search.json", {"budget_bytes": 10})
    result, gates = judge(
        tiny_run, tmp_path / "evaluation", plan=plan, max_latency_ms=0.001, champion=tmp_path / "gone"
    )
    assert not result["passed"]
    assert {name for name in GATES if not gates[name]["passed"]} == {"bytes", "latency"}
    assert "over the limit of 10" in gates["bytes"]["sentence"]
    assert gates["quality_champion"]["value"] is None
