"""What docs/operations.md has people type, as far as no cluster is needed to try it."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from narrowcast.components.serve import kserve_spec
from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.pipelines.cli import app
from narrowcast.records import write_json

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()
STATE = "s3://narrowcast/home/endpoints/default.json"
COMMANDS = sorted(
    {typed or told for typed, told in re.findall(r"(?m)^ *(narrowcast [^#\n]*)|`(narrowcast [^`]*)`", TEXT)}
)


@pytest.fixture
def predictor() -> kserve_spec.Predictor:
    return kserve_spec.predictor(KServeSettings(), "ml_100k", "s3://narrowcast/home/endpoints/default/new")


def test_the_patch_that_takes_a_model_back_leads_to_its_address(predictor):
    (patch,) = json.loads(re.search(r"--type json --patch '(.*?)'", TEXT, re.DOTALL)[1])
    body = kserve_spec.service("default", "Standard", predictor)
    *above, last = patch["path"].strip("/").split("/")
    assert last == "value"
    entry = body
    for key in above:
        entry = entry[int(key) if key.isdecimal() else key]
    assert entry["name"] == "STORAGE_URI"
    entry[last] = patch["value"]
    assert kserve_spec.storage_address(body["spec"]["predictor"]).endswith("/default/PREVIOUS_MD5")


def test_an_endpoint_is_made_again_from_its_state(predictor, tmp_path):
    write_json(tmp_path / "default.json", {"name": "default", "predictor": predictor, "previous_md5": "old"})
    programs = re.findall(r'python -c "([^"]*read_json[^"]*)"', TEXT)
    printed = []
    for program in programs:
        lines = "\n".join(line.strip() for line in program.splitlines())
        assert STATE in lines
        with redirect_stdout(io.StringIO()) as out:
            exec(lines.replace(STATE, str(tmp_path / "default.json")), {})
        printed.append(out.getvalue().strip())
    previous, restored = printed
    assert previous == "old"
    assert json.loads(restored) == kserve_spec.service("default", "Standard", predictor)


def test_alerts_and_metrics_are_those_that_there_are():
    alerts = (ROOT / "k8s" / "monitoring" / "alerts.yaml").read_text()
    metrics = (ROOT / "components" / "serve" / "metrics.py").read_text()
    named = set(re.findall(r"`(Narrowcast\w+)`", TEXT))
    assert named <= set(re.findall(r"alert: (\w+)", alerts))
    for name in set(re.findall(r"`(narrowcast_\w+)`", TEXT)):
        short = name.removeprefix("narrowcast_").removesuffix("_total")
        assert re.search(rf'"(narrowcast_)?{short}"', metrics), name


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_verbs_and_options(command):
    given = command.removesuffix("&&").split()[1:]
    verbs = []
    group = typer.main.get_command(app)
    while hasattr(group, "commands"):
        verbs.append(given.pop(0))
        group = group.commands[verbs[-1]]
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in given if word.startswith("-")} <= options
    assert CliRunner().invoke(app, [*verbs, "--help"]).exit_code == 0
