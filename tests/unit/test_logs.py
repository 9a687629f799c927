"""Log lines as a machine reads them."""

import json
import logging
import subprocess
import sys

from narrowcast.components.serve.logs import JsonLines


def line(**others):
    record = logging.LogRecord("narrowcast.server", logging.INFO, __file__, 1, 'said "%s"\n', ("ä",), None)
    record.__dict__ |= others
    text = JsonLines().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_record_is_one_line_of_json():
    found = line(fields={"request_id": "7", "ms": 1.5})
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "narrowcast.server",
        "event": 'said "ä"\n',
        "request_id": "7",
        "ms": 1.5,
    }


def test_a_failure_has_its_traceback_in_the_line():
    try:
        raise ValueError("no\nline")
    except ValueError:
        found = line(exc_info=sys.exc_info())
    assert "ValueError: no" in found["traceback"]


def test_levels_and_access_lines_are_chosen():
    code = """
import logging, warnings
from narrowcast.components.serve import logs
logs.configure({!r}, {})
logs.event("told"); logs.ACCESS.info("answered"); logging.getLogger("narrowcast.other").warning("ours")
logging.getLogger("feast").warning("theirs"); logging.getLogger("feast").error("broken"); warnings.warn("py")
"""

    def events(level, access):
        ended = subprocess.run([sys.executable, "-c", code.format(level, access)], capture_output=True, text=True)
        return [json.loads(text)["event"] for text in ended.stderr.splitlines()]

    assert events("info", False) == ["told", "ours", "broken"]
    assert events("error", True) == ["answered", "broken"]
