"""The DAG in KFP and in dvc.yaml is one DAG; the compiled package is the golden one."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import graph
from narrowcast.pipelines.dvc_file import dvc_yaml
from narrowcast.pipelines.parameters import CLUSTER, FOUND, signature

ROOT = Path(__file__).resolve().parents[2]


def test_dvc_yaml_is_what_the_pipeline_says():
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml(), "write it anew: narrowcast compile --dvc"


def test_dvc_and_kfp_have_the_same_steps_parameters_and_wiring():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(graph.steps())
    made_by = {out: name for name, stage in stages.items() for out in stage["outs"]}
    for name, step in graph.steps().items():
        assert set(stages[name].get("params", [])) == set(step.parameters.values()) - set(FOUND)
        upstream = {made_by[dep] for dep in stages[name]["deps"] if dep in made_by}
        assert upstream == {producer for producer, _ in step.artifacts.values()}


def test_the_package_is_the_golden_one(tmp_path):
    target = tmp_path / "training.yaml"
    subprocess.run(
        [sys.executable, "-m", "narrowcast.pipelines.cli", "compile", "-o", str(target)],
        check=True,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    golden = ROOT / "tests" / "golden" / "training.yaml"
    assert target.read_text() == golden.read_text(), "narrowcast compile -o tests/golden/training.yaml"


def test_every_package_step_names_the_image_and_installs_nothing():
    package, _ = yaml.safe_load_all((ROOT / "tests" / "golden" / "training.yaml").read_text())
    for executor in package["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"].startswith("narrowcast:")
        assert "pip" not in str(executor["container"]["command"])


def test_params_yaml_states_every_parameter_with_the_pipeline_default():
    stated = yaml.safe_load((ROOT / "params.yaml").read_text())
    stated.pop(CLUSTER)
    known = {name: p for name, p in signature().items() if name not in FOUND}
    assert set(stated) == set(known)
    for name, value in stated.items():
        if known[name].default is not known[name].empty:
            assert value == known[name].default, name


def test_an_unknown_step_names_the_nearest():
    with pytest.raises(NarrowcastError, match="did you mean 'encode'"):
        graph.step("encod")


def test_a_step_without_its_input_says_which_step_to_run(tmp_path):
    with pytest.raises(NarrowcastError, match="narrowcast step checkout"):
        graph.call("ingest", {"schema": ""}, tmp_path)
