"""The verbs are frozen, every one has an example, and a user never sees a traceback."""

import re
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from narrowcast.pipelines.cli import app

VERBS = {
    *("run", "reproduce", "step", "compile", "methods", "serve", "rank", "export", "doctor", "data"),
    *("submit", "schedule", "status", "logs", "cancel"),
}
SCHEDULE_VERBS = {"create", "list", "pause", "resume", "delete"}
DATA_VERBS = {"list", "get", "describe", "synth", "snapshot", "checkout", "drift"}


def narrowcast(*arguments, cwd=None):
    command = [sys.executable, "-m", "narrowcast.pipelines.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_verbs_are_frozen():
    command = get_command(app)
    assert set(command.commands) == VERBS
    assert set(command.commands["data"].commands) == DATA_VERBS
    assert set(command.commands["schedule"].commands) == SCHEDULE_VERBS


@pytest.mark.parametrize(
    "verb",
    [
        *sorted((verb,) for verb in VERBS - {"data", "schedule"}),
        *sorted(("data", verb) for verb in DATA_VERBS),
        *sorted(("schedule", verb) for verb in SCHEDULE_VERBS),
    ],
)
def test_help_shows_an_example(verb):
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    assert re.search(r"Example:\s+narrowcast " + " ".join(verb), re.sub(r"[│\s]+", " ", result.output))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "params.yaml does not exist"),
        (["run", "--set", "epochs"], "write it as NAME=VALUE"),
        (["step", "encod"], "did you mean 'encode'"),
        (["reproduce", "latest"], "no run in"),
        (["rank", "--user", "1", "--candidates", "2"], "default"),
        (["serve"], "--store"),
        (["compile"], "params.yaml does not exist"),
        (["serve", "--stop", "../other"], "cannot name an endpoint"),
        (["export", "latest", "--out", "exported"], "no run in"),
        (["submit"], "params.yaml does not exist"),
        (["status"], "params.yaml does not exist"),
        (["logs", "run", "--follow"], "--follow needs a step"),
        (["schedule", "create", "nightly"], "either --cron"),
        (["data", "get", "ml_10k"], "did you mean 'ml_100k'"),
        (["data", "describe", "nothing.csv"], "nothing.csv"),
        (["data", "snapshot", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_status_1(arguments, sentence, tmp_path):
    done = narrowcast(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "sentence"), [("package.txt", "ends in .yaml"), ("nowhere/package.yaml", "nowhere/package.yaml")]
)
def test_a_package_that_cannot_be_written(target, sentence, tmp_path):
    (tmp_path / "params.yaml").write_text("schema: ml_100k\ndata_version: abc\n")
    done = narrowcast("compile", "-o", target, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .*{re.escape(sentence)}.*\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("text", ["[]", '{"version": 1}', '{"version": 1, "more": 2}'])
def test_a_file_that_is_no_run_cannot_be_reproduced(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    done = narrowcast("reproduce", "run.json", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: run\.json is no.*\n", done.stderr)


def test_doctor_says_what_to_mend(tmp_path):
    done = narrowcast("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "dvc init" in done.stderr
