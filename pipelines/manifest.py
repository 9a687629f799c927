"""The run manifest, `run.json`: all that it takes to make the run again and to know that it came out the same."""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.pipelines.graph import steps
from narrowcast.pipelines.local import StepState
from narrowcast.records import RECORD, StepRecord, digest, read_json, write_json

VERSION = 1
NOT_REPRODUCED = frozenset({"raw_docs", "frame_docs", "feature_store", "evaluation", "deployment", "page"})
"""Artifacts that carry times or addresses, and that no other artifact is made from bit by bit."""
LIBRARIES = (
    "numpy",
    "pandas",
    "pyarrow",
    "duckdb",
    "torch",
    "ray",
    "feast",
    "dvc",
    "great-expectations",
    "kfp",
    "kserve",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run, as `run.json` keeps it.

    `parameters` are the pipeline's arguments without those that name places of this machine. `artifacts` maps an output
    to its md5 and its folder; `steps` maps a step to its state, seconds and row account.
    """

    run_id: str
    status: str
    error: str | None
    started: str
    seconds: float
    git_commit: str
    code: str
    lock: str | None
    data_version: str
    parameters: dict[str, Any]
    machine: dict[str, Any]
    artifacts: dict[str, dict[str, str]]
    steps: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    version: int = VERSION

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Run":
        data = read_json(path)
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise NarrowcastError(f"{path} is not a run manifest of version {VERSION}: give the run.json of a run")
        try:
            return cls(**data)
        except TypeError as error:
            raise NarrowcastError(f"{path} is no whole run manifest ({error}): give the run.json of a run") from None


PLACES = frozenset({"home", "data_remote", "champion", "git_commit", "ray", "kserve"})


def machine() -> dict[str, Any]:
    """What decides the last bits of a float: processor, Python and libraries."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"processor": platform.machine(), "python": platform.python_version(), "libraries": versions}


def describe_artifacts(folders: Mapping[str, Path], home: Path) -> dict[str, dict[str, str]]:
    """md5 and folder (relative to `home` where it lies there) of every artifact."""
    described: dict[str, dict[str, str]] = {}
    for name, folder in sorted(folders.items()):
        place = folder.relative_to(home) if folder.is_relative_to(home) else folder
        described[name] = {"path": str(place), "md5": digest(folder)}
    return described


def describe_steps(states: Mapping[str, StepState], folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """State, seconds and row account by step, in the DAG's order; a step that never began is left out."""
    described: dict[str, dict[str, Any]] = {}
    for name, step in steps().items():
        if name not in states:
            continue
        state = states[name]
        described[name] = {"status": state.status, "seconds": round(state.seconds, 3)}
        records = [folders[o] for o in step.outputs if o in folders and (folders[o] / RECORD).is_file()]
        if records:
            record = StepRecord.load(records[0])
            described[name] |= {"rows_in": record.rows_in, "rows_out": record.rows_out, "refused": record.refused}
    return described


def find_run(name: str, home: Path) -> Path:
    """The run.json of a run given by its id, its folder or the file itself; `latest` is the newest."""
    runs = sorted((home / "runs").glob("*/run.json")) if (home / "runs").is_dir() else []
    if name == "latest":
        if not runs:
            raise NarrowcastError(f"no run in {home / 'runs'} yet: start one with `narrowcast run`")
        return runs[-1]
    for candidate in (Path(name), Path(name) / "run.json", home / "runs" / name / "run.json"):
        if candidate.is_file():
            return candidate
    known = [path.parent.name for path in runs]
    raise NarrowcastError(f"no run '{name}': {nearest(name, known) if known else 'give the path of its run.json'}")


def artifact_folder(name: str, artifact: str, home: Path) -> Path:
    """Folder of one artifact of the run that `find_run` finds."""
    path = find_run(name, home)
    made = Run.load(path).artifacts
    if artifact not in made:
        raise NarrowcastError(f"{path.parent.name} did not come as far as its {artifact}: give a run that did")
    return home / made[artifact]["path"]


def keep(source: Path, target: Path) -> None:
    """Copy a file beside the manifest, whole or not at all."""
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(source, temporary)
    temporary.rename(target)
