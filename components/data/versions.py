"""Versions of raw data: a folder's DVC md5, taken in a Git and DVC checkout, fetched again wherever its remote is."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from rich.console import Console
from rich.progress import Progress

from narrowcast.components.data import latest
from narrowcast.components.data.remote_errors import one_line
from narrowcast.components.data.remotes import Remote, dvc_config
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, writing_directory


def snapshot(path: Path, *, commit: bool = True, message: str | None = None) -> str:
    """Take the folder `path` as it is now: pointer file by DVC, content to the default remote, pointer to Git.

    Returns the version, `<md5>.dir`, which `latest:<name of the folder>` means from then on. Only the pointer
    `<path>.dvc` is committed (and DVC's `.gitignore` beside it), only where it changed and only once the remote holds
    the content, so that every committed version can be fetched.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        mend = (
            "it is a file; put it in a folder of its own and take that"
            if path.exists()
            else "it does not exist; `narrowcast data get NAME` makes such a folder"
        )
        raise NarrowcastError(f"cannot take a snapshot of {path}: {mend}")
    if not any(file.is_file() for file in path.rglob("*")):
        raise NarrowcastError(f"cannot take a snapshot of {path}: it holds no files; put the raw data there first")
    remote = Remote(default_remote(path.parent), root=path.parent, writing=True)
    try:
        with Repo(Repo.find_root(str(path))) as repo:
            repo.scm_context.quiet = True  # no advice to run `git add`
            repo.add([str(path)])
            with remote.pushing():
                repo.push([str(_pointer(path))])
    except (DvcException, OSError) as error:
        raise NarrowcastError(f"DVC could not take {path}: {one_line(error)}") from None
    version = recorded_version(path)
    latest.write(remote, path.name, version)
    if commit:
        _commit(_pointer(path), message or f"Data version {version} of {path.name}")
    return version


def checkout(version: str, remote: str, target: str | Path) -> str:
    """Fetch the folder of one version from a DVC remote (address or folder) into `target`, every file's md5 checked.

    `version` is what `snapshot` returned, or `latest:<name>`. Returns the version fetched, which `step.json` holds too.
    Needs no Git or DVC checkout; settings of the remote are found as `Remote` says.
    """
    store = Remote(remote)
    found = latest.resolve(version, store)
    console = Console(stderr=True)
    if found != version:
        console.print(f"{version} is data version {found}", soft_wrap=True)
    with writing_directory(target) as folder:
        listing = folder / ".listing"
        store.fetch(found, listing, found)
        entries = json.loads(listing.read_text())
        listing.unlink()
        bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        with ThreadPoolExecutor(store.fs.jobs) as threads, bar:
            fetched = threads.map(lambda entry: store.fetch(entry["md5"], folder / entry["relpath"], found), entries)
            for _ in bar.track(fetched, total=len(entries), description="fetching data"):
                pass  # the first failure is raised here, and what has not begun is left
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        metrics = {"files": float(len(entries)), "bytes": float(size)}
        StepRecord(step="checkout", rows_in=0, rows_out=0, metrics=metrics, details={"version": found}).save(folder)
    return found


def resolved(version: str, remote: str) -> str:
    """The version that `latest:<name>` means now on the remote at that address; any other `version` as it is."""
    return latest.resolve(version, Remote(remote)) if version.startswith(latest.PREFIX) else version


def recorded_version(path: Path) -> str:
    """The version that `<path>.dvc` records: what the last snapshot of the folder `path` returned."""
    pointer = _pointer(Path(path))
    if not pointer.is_file():
        raise NarrowcastError(f"{pointer} does not exist: run `narrowcast data snapshot {path}` first")
    try:
        version = yaml.safe_load(pointer.read_text())["outs"][0]["md5"]
    except (yaml.YAMLError, KeyError, IndexError, TypeError):
        version = ""
    if not latest.FOLDER_VERSION.fullmatch(str(version)):
        raise NarrowcastError(
            f"{pointer} records no folder's md5: restore it from Git, or run `narrowcast data snapshot {path}` again"
        )
    return str(version)


def default_remote(root: Path) -> str:
    """Address, or absolute folder, of the default remote of the DVC checkout that `root` lies in, or of the user."""
    config = dvc_config(root)
    name = config["core"].get("remote")
    if name in config["remote"]:
        return str(config["remote"][name]["url"])
    if config.dvc_dir is None:
        raise NarrowcastError(
            f"{root} does not lie in a DVC checkout: name the remote, or run `git init` and `dvc init` in its project"
        )
    raise NarrowcastError(
        f"the DVC checkout {Path(config.dvc_dir).parent} has no default remote: run `dvc remote add --default NAME "
        "ADDRESS`"
    )


def _commit(pointer: Path, message: str) -> None:
    """Commit the pointer if it changed. Without Git around there is nothing to do."""
    if _git(pointer.parent, "rev-parse", "--is-inside-work-tree").returncode:
        return
    files = [pointer.name, *(p.name for p in [pointer.with_name(".gitignore")] if p.is_file())]
    if not _git(pointer.parent, "status", "--porcelain", "--", *files).stdout.strip():
        return
    steps = (
        (("var", "GIT_COMMITTER_IDENT"), "set user.name and user.email with `git config` and run this again"),
        (("add", "--", *files), f"mend that and commit {pointer}"),
        (("commit", "--quiet", "--message", message, "--", *files), f"mend that and commit {pointer}"),
    )
    for arguments, mend in steps:
        done = _git(pointer.parent, *arguments)
        if done.returncode:
            reason = " ".join((done.stderr or done.stdout).split())[-200:]
            raise NarrowcastError(f"the data is on the remote, but Git cannot commit {pointer} ({reason}): {mend}")


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def _pointer(path: Path) -> Path:
    return path.with_name(path.name + ".dvc")
