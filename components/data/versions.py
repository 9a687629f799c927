"""Versions of raw data: a folder's DVC md5, taken in a Git and DVC checkout, fetched again wherever its remote is."""

import json
import re
import subprocess
from pathlib import Path

import yaml
from dvc.exceptions import DvcException
from dvc.fs import get_cloud_fs
from dvc.repo import Repo
from rich.console import Console
from rich.progress import track

from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, writing_directory

FOLDER_VERSION = re.compile(r"[0-9a-f]{32}\.dir")


def snapshot(path: Path, *, commit: bool = True, message: str | None = None) -> str:
    """Take the folder `path` as it is now: pointer file by DVC, content to the default remote, pointer to Git.

    Returns the version, `<md5>.dir`. Only the pointer `<path>.dvc` is committed (and DVC's `.gitignore` beside it),
    only where it changed and only once the remote holds the content, so that every committed version can be fetched.
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
    remote = default_remote(path)
    try:
        with Repo(Repo.find_root(str(path))) as repo:
            repo.scm_context.quiet = True  # no advice to run `git add`
            repo.add([str(path)])
            repo.push([str(_pointer(path))])
    except (DvcException, OSError, ImportError) as error:
        raise NarrowcastError(f"DVC could not keep {path} on remote {remote}: {_reason(error)}") from None
    version = recorded_version(path)
    if commit:
        _commit(_pointer(path), message or f"Data version {version} of {path.name}")
    return version


def checkout(version: str, remote: str, target: str | Path) -> None:
    """Fetch the folder of one version from a DVC remote (address or folder) into `target`, every file's md5 checked.

    Needs no Git or DVC checkout; credentials of an address come from the environment.
    """
    if not FOLDER_VERSION.fullmatch(version):
        raise NarrowcastError(
            f"'{version}' is no data version: give the '<32 hexadecimal digits>.dir' that `narrowcast data snapshot` "
            "prints"
        )
    store = _Remote(remote)
    with writing_directory(target) as folder:
        listing = folder / ".listing"
        store.fetch(version, listing, version)
        entries = json.loads(listing.read_text())
        listing.unlink()
        console = Console(stderr=True)
        for entry in track(entries, "fetching data", console=console, transient=True, disable=not console.is_terminal):
            store.fetch(entry["md5"], folder / entry["relpath"], version)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        metrics = {"files": float(len(entries)), "bytes": float(size)}
        StepRecord(step="checkout", rows_in=0, rows_out=0, metrics=metrics, details={"version": version}).save(folder)


def recorded_version(path: Path) -> str:
    """The version that `<path>.dvc` records: what the last snapshot of the folder `path` returned."""
    pointer = _pointer(Path(path))
    if not pointer.is_file():
        raise NarrowcastError(f"{pointer} does not exist: run `narrowcast data snapshot {path}` first")
    try:
        version = yaml.safe_load(pointer.read_text())["outs"][0]["md5"]
    except (yaml.YAMLError, KeyError, IndexError, TypeError):
        version = ""
    if not FOLDER_VERSION.fullmatch(str(version)):
        raise NarrowcastError(
            f"{pointer} records no folder's md5: restore it from Git, or run `narrowcast data snapshot {path}` again"
        )
    return str(version)


def default_remote(root: Path) -> str:
    """Address, or absolute folder, of the default remote of the DVC checkout that `root` lies in."""
    try:
        with Repo(Repo.find_root(str(root))) as repo:
            name = repo.config["core"].get("remote")
            if name and name in repo.config["remote"]:
                return str(repo.config["remote"][name]["url"])
            raise NarrowcastError(
                f"the DVC checkout {repo.root_dir} has no default remote: run `dvc remote add --default NAME ADDRESS`"
            )
    except DvcException as error:
        raise NarrowcastError(
            f"{root} does not lie in a DVC checkout ({_reason(error)}): run `git init` and `dvc init` in its project"
        ) from None


class _Remote:
    """Objects of a DVC 3 remote by md5: `<address>/files/md5/<first two digits>/<the others>`."""

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            cls, config, self.root = get_cloud_fs(None, url=address)
            self.fs = cls(**config)
        except (DvcException, ImportError) as error:
            raise NarrowcastError(f"cannot use DVC remote {address}: {_reason(error)}") from None
        if self.fs.protocol == "local" and not Path(self.root).is_dir():
            raise NarrowcastError(
                f"DVC remote {address} does not exist: take a snapshot here, or name the remote that holds the data"
            )

    def fetch(self, md5: str, target: Path, version: str) -> None:
        """Write one object to `target`; `version` is what a reader of the error needs to know."""
        source = self.fs.join(self.root, "files", "md5", md5[:2], md5[2:])
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(source, str(target))
        except FileNotFoundError:
            raise NarrowcastError(
                f"data version {version} is not whole on DVC remote {self.address} (object {md5} is missing): "
                "run `dvc push` in the checkout where its snapshot was taken"
            ) from None
        except Exception as error:  # each kind of remote has its client's own exceptions
            raise NarrowcastError(f"cannot read DVC remote {self.address}: {_reason(error)}") from None
        if digest(target) != md5.removesuffix(".dir"):
            raise NarrowcastError(
                f"object {md5} of data version {version} is damaged on DVC remote {self.address}: delete it there and "
                "run `dvc push` in the checkout where its snapshot was taken"
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
