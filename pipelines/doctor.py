"""Whether this machine and checkout can run the DAG."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.parameters import home_folder, load, remote_address

PINNED = {
    "kfp": "2.17.0",
    "ray": "2.60.0",
    "feast": "0.67.0",
    "dvc": "3.67.1",
    "great-expectations": "1.24.1",
    "kserve": "0.21.0",
}
MIN_FREE_GB = 5
MIN_MEMORY_GB = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """`found` says what is there, and how to mend it where `passed` is false."""

    name: str
    passed: bool
    found: str


def checks(root: Path) -> list[Check]:
    """Every check, in the order in which to mend."""
    return [
        _python(),
        *_packages(),
        _tool("git"),
        _checkout(root),
        _remote(root),
        _parameters(root),
        _disk(root),
        _memory(),
    ]


def _python() -> Check:
    return Check(name="python", passed=sys.version_info >= (3, 11), found=f"{sys.version.split()[0]} (3.11 or newer)")


def _packages() -> list[Check]:
    found = []
    for name, wanted in PINNED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        mend = "" if version == wanted else f"; install {wanted}: `make setup`"
        found.append(Check(name=name, passed=version == wanted, found=version + mend))
    return found


def _tool(name: str) -> Check:
    path = shutil.which(name)
    return Check(name=name, passed=path is not None, found=path or f"not on PATH: install {name}")


def _checkout(root: Path) -> Check:
    git = subprocess.run(["git", "-C", str(root), "rev-parse"], capture_output=True, check=False).returncode == 0
    both = git and (root / ".dvc").is_dir()
    return Check(
        name="checkout",
        passed=both,
        found="Git and DVC" if both else "not a Git and DVC checkout: `git init && dvc init`",
    )


def _remote(root: Path) -> Check:
    try:
        return Check(name="data remote", passed=True, found=remote_address("", root))
    except NarrowcastError as error:
        return Check(name="data remote", passed=False, found=str(error))


def _parameters(root: Path) -> Check:
    try:
        return Check(name="params.yaml", passed=True, found=f"{len(load(root / 'params.yaml'))} parameters")
    except NarrowcastError as error:
        return Check(name="params.yaml", passed=False, found=str(error))


def _disk(root: Path) -> Check:
    home = home_folder(root)
    free = shutil.disk_usage(home if home.exists() else root).free / 1e9
    return Check(
        name="disk",
        passed=free >= MIN_FREE_GB,
        found=f"{free:.0f} GB free" + ("" if free >= MIN_FREE_GB else f": make {MIN_FREE_GB} GB free below {home}"),
    )


def _memory() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Check(name="memory", passed=memory >= MIN_MEMORY_GB, found=f"{memory:.0f} GB ({MIN_MEMORY_GB} GB at least)")
