"""What a step tells the runner that reads its output."""

import json

import pytest

from narrowcast.errors import NarrowcastError
from narrowcast.step import MARK, step


def told(capsys):
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)]
    return json.loads(line.removeprefix(MARK))


def test_a_good_end(capsys):
    with step("encode"):
        pass
    assert told(capsys) | {"seconds": 0} == {"step": "encode", "seconds": 0, "error": None}


def test_a_users_mistake_is_its_sentence_and_status_1(capsys):
    with pytest.raises(SystemExit) as ended, step("encode"):
        raise NarrowcastError("no rows")
    assert ended.value.code == 1
    assert told(capsys)["error"] == "no rows"


def test_a_defect_is_named_and_keeps_its_traceback(capsys):
    with pytest.raises(KeyError), step("encode"):
        raise KeyError("a\nb")
    assert "unexpected KeyError 'a\\nb'" in told(capsys)["error"]
