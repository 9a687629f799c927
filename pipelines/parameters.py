"""The parameters of a run: `params.yaml`, what the command line changes in it, and what a run finds out by itself."""

import contextlib
import inspect
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from narrowcast.errors import NarrowcastError, nearest

FOUND = ("git_commit", "home", "champion", "ray", "kserve")
"""Pipeline inputs that a run finds out by itself and params.yaml may not set."""
CLUSTER = "cluster"
"""The section of params.yaml that is no input of the pipeline: how a run is placed on a cluster."""


def signature() -> dict[str, inspect.Parameter]:
    """The pipeline's inputs by name."""
    from narrowcast.pipelines.training import training

    return dict(inspect.signature(training.pipeline_func).parameters)


def load(path: Path, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """params.yaml with `changes` (text values, as `--set` gives them) applied, checked against the pipeline's inputs.

    Raises NarrowcastError naming an unknown parameter and the nearest valid one, or a value of the wrong type.
    """
    values = read(path, changes)
    values.pop(CLUSTER, None)
    inputs = {name: p for name, p in signature().items() if name not in FOUND}
    given = checked(values, str(path))
    defaults = {n: p.default for n, p in inputs.items() if p.default is not inspect.Parameter.empty}
    missing = [n for n in inputs if n not in defaults and n not in given]
    if missing:
        raise NarrowcastError(f"{path}: parameter '{missing[0]}' is missing; add `{missing[0]}: ...`")
    return {**defaults, **given}


def read(path: Path, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A parameter file with `changes` applied, not checked yet."""
    if not path.is_file():
        raise NarrowcastError(
            f"parameter file {path} does not exist: run in the project's folder or give --params FILE"
        )
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise NarrowcastError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise NarrowcastError(f"{path} must be a mapping of parameter names to values")
    for name, text in (changes or {}).items():
        values = _changed(values, name.split("."), _read(text), name)
    return values


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as the pipeline's inputs take them. Raises NarrowcastError as `load` does."""
    known = {name: p for name, p in signature().items() if name not in FOUND}
    for name in values:
        if name not in known:
            raise NarrowcastError(f"{where}: unknown parameter '{name}'; {nearest(str(name), known)}")
    return {name: _typed(name, value, known[name].annotation, where) for name, value in values.items()}


def _read(text: str) -> Any:
    """A value of the command line, read as params.yaml would be; text that is no YAML stands for itself."""
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _changed(values: Mapping[str, Any], keys: Sequence[str], value: Any, name: str) -> dict[str, Any]:
    """`values` with one changed; keys after the first lead into the mappings inside."""
    if len(keys) == 1:
        return {**values, keys[0]: value}
    inside = values.get(keys[0]) or {}
    if not isinstance(inside, Mapping):
        raise NarrowcastError(f"--set {name}: '{keys[0]}' is no mapping; set it as a whole")
    return {**values, keys[0]: _changed(inside, keys[1:], value, name)}


def _typed(name: str, value: Any, kind: type, where: str) -> Any:
    if kind is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # YAML takes 1e-3 for text
        if isinstance(value, float) and not math.isfinite(value):
            raise NarrowcastError(f"{where}: parameter '{name}' must be a finite number, not '{value}'")
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise NarrowcastError(f"{where}: parameter '{name}' must be {kind.__name__}, not '{value}'")
    return value


def complete(
    values: Mapping[str, Any],
    *,
    home: str,
    root: Path,
    champion: str = "",
    ray: Mapping[str, Any] | None = None,
    kserve: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The pipeline's arguments: the schema's path becomes its text, the remote's name its address.

    `root` is the checkout, `home` the folder, or address, that holds the endpoints' state. `ray` and `kserve` are
    given on a cluster alone.
    """
    from narrowcast.components.data.schema import Schema, schema_text

    given = str(values["schema"])
    path = root / given
    text = schema_text(path if path.suffix in {".yaml", ".yml"} else given)
    Schema.from_text(text, where=given)
    return {
        **values,
        "schema": text,
        "data_remote": remote_address(values["data_remote"], root),
        "git_commit": git_commit(root),
        "home": home,
        "champion": champion,
        "ray": dict(ray or {}),
        "kserve": dict(kserve or {}),
    }


def refuse_early(values: Mapping[str, Any]) -> None:
    """Raise NarrowcastError at once for what a step would refuse after the steps before it.

    What only the data can tell is left to the steps. Loads torch.
    """
    from narrowcast.components.search.budget import parse_budget
    from narrowcast.components.search.run import SearchConfig, trials_of
    from narrowcast.components.train.plan import full_plan
    from narrowcast.components.train.run import train_config

    def some(*names: str) -> dict[str, Any]:
        return {name: values[name] for name in names}

    trained = some("epochs", "batch_size", "learning_rate", "num_workers", "seed")
    training = train_config(values["backbone"], values["model"], values["training"], **trained)
    searched = some("width", "inner_width", "method", "budget", "bits", "num_trials", "num_workers")
    trials_of(SearchConfig(training=training, **searched))
    full = full_plan({"any": 1}, values["width"], inner_width=values["inner_width"] or None)
    parse_budget(values["budget"], full.full_bytes())
    if values["online_store"]:
        from narrowcast.components.features.redis_url import check_url

        check_url(values["online_store"])


def remote_address(given: str, root: Path) -> str:
    """Address of the DVC remote: the one given (a folder counts from `root`), else the checkout's default."""
    from narrowcast.components.data.versions import default_remote

    if not given:
        return default_remote(root)
    return given if "://" in given else str((root / given).resolve())


def git_commit(root: Path) -> str:
    """The checkout's commit, '+changes' after it when tracked files differ, 'unknown' outside Git."""
    found = _git(root, "rev-parse", "HEAD")
    if found is None:
        return "unknown"
    return found + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def home_folder(root: Path) -> Path:
    """Where runs, caches and endpoints live: $NARROWCAST_HOME, or `.narrowcast` in the checkout."""
    return Path(os.environ.get("NARROWCAST_HOME") or root / ".narrowcast")
