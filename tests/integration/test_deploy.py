"""Endpoints with real servers: first deployment, replacement under load, what keeps the champion, stop and start."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from narrowcast.components.serve import process
from narrowcast.components.serve.deploy import champion_path, deploy, read_endpoint, start, status, stop
from narrowcast.components.serve.rank import rank, ranking
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json, write_json


@pytest.fixture
def home(tmp_path):
    yield tmp_path / "home"
    for row in status(tmp_path / "home"):
        process.stop(row["pid"])


def verdict(folder: Path, *, passed: bool) -> Path:
    gate = {"name": "bytes", "value": 2, "limit": 1, "passed": passed, "sentence": "the tables weigh too much"}
    write_json(folder / "evaluation.json", {"passed": passed, "gates": [gate]})
    return folder


def run(model, tiny_run, home, tmp_path, *, passed=True, endpoint="default"):
    judged = verdict(tmp_path / "evaluation", passed=passed)
    deploy(model, tiny_run.feature_store, judged, endpoint, home, tmp_path / "deployment")
    assert StepRecord.load(tmp_path / "deployment").step == "deploy"
    return read_json(tmp_path / "deployment" / "deployment.json")


def test_an_endpoints_life(tiny_run, another_model, home, tmp_path):
    with pytest.raises(NarrowcastError, match="nothing is deployed at endpoint 'default'"):
        rank("3", ["1"], endpoint="default", home=home)
    assert champion_path(home, "default") == ""

    refused = run(tiny_run.packed_model, tiny_run, home, tmp_path, passed=False)
    assert refused["deployed"] is refused["kept_champion"] is False
    assert refused["url"] is None
    assert "the tables weigh too much" in refused["reason"]

    first = run(tiny_run.packed_model, tiny_run, home, tmp_path)
    assert first["deployed"] is True
    assert first["model_md5"] == digest(tiny_run.packed_model) == digest(champion_path(home, "default"))
    old = read_endpoint(home, "default")
    assert old.url == first["url"]

    again = run(tiny_run.packed_model, tiny_run, home, tmp_path)
    assert again["deployed"] is False
    assert "already serves" in again["reason"]
    assert read_endpoint(home, "default") == old

    found = ranking(
        "nobody", ["1", "2", "never"], endpoint="default", home=home, context={"device": "tv", "price": "2"}
    )
    assert sorted(item for item, _ in found.items) == ["1", "2", "never"]
    assert [p for _, p in found.items] == sorted((p for _, p in found.items), reverse=True)
    assert found.unknown_user
    assert found.unknown_items == ("never",)
    with pytest.raises(NarrowcastError, match="missing input 'device'"):
        rank("3", ["1"], endpoint="default", home=home)
    with pytest.raises(NarrowcastError, match="'price' is 'cheap', but the field is numeric"):
        rank("3", ["1"], endpoint="default", home=home, context={"price": "cheap"})
    with pytest.raises(NarrowcastError, match="did you mean 'device'"):
        rank("3", ["1"], endpoint="default", home=home, context={"devise": "tv"})
    with pytest.raises(NarrowcastError, match="did you mean 'default'"):
        rank("3", ["1"], endpoint="defualt", home=home)

    broken = tmp_path / "broken"
    shutil.copytree(tiny_run.packed_model, broken)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-1] ^= 255
    (broken / "weights.safetensors").write_bytes(weights)
    kept = run(broken, tiny_run, home, tmp_path)
    assert kept["kept_champion"] is True
    assert "the new model does not answer" in kept["reason"]
    assert "weights.safetensors" in kept["reason"]
    assert kept["url"] == old.url
    assert old.answers()

    answers, failures, ended = [], [], threading.Event()

    def ask():
        """The ranking by looked-up features; again where a busy machine let the store's deadline pass."""
        while True:
            found = ranking("3", ["1", "2"], endpoint="default", home=home, context={"device": "tv"})
            if not found.fallbacks:
                return found.items

    def ask_without_end():
        while not ended.is_set():
            try:
                answers.append(ask())
            except NarrowcastError as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask_without_end)
    asking.start()
    try:
        replaced = run(another_model, tiny_run, home, tmp_path)
        ended.wait(0.5)
    finally:
        ended.set()
        asking.join()
    assert replaced["deployed"] is True
    assert not failures
    assert len({json.dumps(answer) for answer in answers}) == 2, "the old and the new model both answered"
    new = read_endpoint(home, "default")
    assert new.model_md5 == digest(another_model)
    assert (new.pid, new.url, new.grpc_url) == (old.pid, old.url, old.grpc_url), "the same process took it over"
    assert Path(old.model_path).is_dir(), "a run may still be judging against it"
    assert not (home / "endpoints" / "default" / digest(broken)).exists()

    worse = run(tiny_run.packed_model, tiny_run, home, tmp_path, passed=False)
    assert worse["kept_champion"] is True
    assert worse["url"] == new.url
    assert new.answers()

    assert stop("default", home)["alive"] is True
    assert not process.is_running(new.pid)
    assert [row["alive"] for row in status(home)] == [False]
    with pytest.raises(NarrowcastError, match="does not answer at"):
        rank("3", ["1"], endpoint="default", home=home, context={"device": "tv"})
    restarted = start("default", home)
    assert restarted.model_md5 == new.model_md5
    assert ask() == answers[-1]

    state = home / "endpoints" / "default.json"
    before_swaps = {key: value for key, value in read_json(state).items() if key not in ("code", "grpc_url")}
    write_json(state, before_swaps)
    back = run(tiny_run.packed_model, tiny_run, home, tmp_path)
    assert back["deployed"] is True
    assert ask() == answers[0]
    moved = read_endpoint(home, "default")
    assert moved.pid != restarted.pid, "a server of other code, or of an unknown one, is replaced by a new process"
    assert not process.is_running(restarted.pid)
    assert {path.name for path in (home / "endpoints" / "default").iterdir()} == {
        "current",
        "server.json",
        "server.log",
        "server.log.old",
        digest(another_model),
        digest(tiny_run.packed_model),
    }

    os.kill(moved.pid, signal.SIGKILL)
    after = run(another_model, tiny_run, home, tmp_path)
    assert after["deployed"] is True, "an endpoint whose server died gets another"
    assert ask() == answers[-1]


def test_no_endpoint_named_deploys_nothing(tiny_run, home, tmp_path):
    result = run(tiny_run.packed_model, tiny_run, home, tmp_path, endpoint="")
    assert result["deployed"] is False
    assert status(home) == []


def test_names_that_are_paths_are_refused(tiny_run, home, tmp_path):
    with pytest.raises(NarrowcastError, match="cannot name an endpoint"):
        run(tiny_run.packed_model, tiny_run, home, tmp_path, endpoint="../elsewhere")
    assert not (tmp_path / "deployment").exists()


def test_other_processes_are_never_stopped(home, tmp_path):
    import subprocess

    bystander = subprocess.Popen(["sleep", "60"])
    try:
        assert process.stop(bystander.pid) is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert process.stop(bystander.pid) is False


def test_damaged_state_is_a_sentence(home):
    write_json(home / "endpoints" / "default.json", {"name": "default"})
    with pytest.raises(NarrowcastError, match="delete it and deploy again"):
        read_endpoint(home, "default")
    (home / "endpoints" / "default.json").write_text("{")
    with pytest.raises(NarrowcastError, match="not valid JSON"):
        read_endpoint(home, "default")
