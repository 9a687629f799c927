"""What a step leaves behind beside its data: a record with its row account, written so that nothing is half-written."""

import contextlib
import contextvars
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.errors import NarrowcastError

RECORD = "step.json"
STEP_STARTED: contextvars.ContextVar[float | None] = contextvars.ContextVar("STEP_STARTED", default=None)
"""time.monotonic() at the start of the step now running, set by `narrowcast.step.step`."""


@dataclass(kw_only=True, slots=True)
class StepRecord:
    """The account of one step, saved as `step.json` inside the step's main artifact.

    `rows_in == rows_out + sum(refused.values())` holds at every step; `refused` maps a reason to a number of rows.
    `metrics` are flat numbers; `details` holds whatever the report draws (curves, tables), JSON-able. `seconds` is the
    step's duration up to `save`.
    """

    step: str
    rows_in: int
    rows_out: int
    refused: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        lost = self.rows_in - self.rows_out - sum(self.refused.values())
        if lost:
            raise NarrowcastError(
                f"step '{self.step}' took in {self.rows_in} rows but accounts for {self.rows_in - lost}: "
                "a row was lost or invented, which is a defect; please report it with the run's log"
            )
        started = STEP_STARTED.get()
        self.seconds = None if started is None else round(time.monotonic() - started, 3)
        write_json(Path(directory) / RECORD, asdict(self))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "StepRecord":
        return cls(**read_json(Path(directory) / RECORD))


@contextlib.contextmanager
def writing_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes `target` when the block ends well and vanishes when not."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON whole or not at all, keys sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise NarrowcastError(f"{path} does not exist: run the step that writes it first") from None
    except ValueError as error:  # no JSON, or no text at all
        raise NarrowcastError(f"{path} is not valid JSON ({error}): delete it and run its step again") from None


def digest(path: str | os.PathLike[str]) -> str:
    """md5 of a file, or of a directory's files (relative name and content, sorted).

    `step.json` does not count: it describes how the content was made and is not content.
    """
    path = Path(path)
    md5 = hashlib.md5(usedforsecurity=False)
    if path.is_file():
        _update_from_file(md5, path)
        return md5.hexdigest()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != RECORD):
        md5.update(file.relative_to(path).as_posix().encode() + b"\0")
        _update_from_file(md5, file)
    return md5.hexdigest()


def _update_from_file(md5: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            md5.update(chunk)
