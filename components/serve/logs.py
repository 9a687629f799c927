"""A server's log: one JSON object a line on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

EVENTS = logging.getLogger("narrowcast.server")
"""What happens to the server: started, ready, swapped, ended, and requests that failed through no fault of theirs."""
ACCESS = logging.getLogger("narrowcast.access")
"""One line a request, where asked for."""
LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `event`, and what the call gave as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, access: bool) -> None:
    """Send all loggers of this process to standard error as JSON lines: ours from `level` on, others' errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    logging.getLogger("narrowcast").setLevel(level.upper())
    ACCESS.setLevel(logging.INFO if access else logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("kserve").setLevel(logging.CRITICAL)  # it reports a client's mistakes as errors, with tracebacks


def event(text: str, *, level: int = logging.INFO, failure: BaseException | None = None, **fields: Any) -> None:
    EVENTS.log(level, text, exc_info=failure, extra={"fields": fields})
