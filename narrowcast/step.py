"""What every step's body runs inside of, whoever calls it."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

from narrowcast.errors import NarrowcastError
from narrowcast.records import STEP_STARTED

MARK = "narrowcast-step "
"""Starts the line of JSON by which a step tells its caller how it ended."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Name the step's end and duration on standard output; turn a NarrowcastError into its sentence and status 1.

    Any other exception is told as a defect and raised again. Prints one line,
    `narrowcast-step {"step", "seconds", "error"}`, for the runner that reads the log.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.environ.setdefault("FEAST_USAGE", "False")
    started = time.monotonic()
    STEP_STARTED.set(started)

    def tell(error: str | None) -> None:
        print(MARK + json.dumps({"step": name, "seconds": time.monotonic() - started, "error": error}), flush=True)

    try:
        yield
    except NarrowcastError as error:
        tell(str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except Exception as error:
        told = " ".join(f"{type(error).__name__} {error}".split())
        tell(f"an unexpected {told}, which is a defect: please report it with the traceback in the step's log")
        raise
    tell(None)
