"""Endpoints of this machine: a server process each, its state in a file, its model replaced only by one that answers.

`<home>/endpoints/<endpoint>/` holds a folder a model (`<md5>/model`, `<md5>/store`), the link `current` to the one that
serves, and the server's log and announcement.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from narrowcast.components.serve import client, process
from narrowcast.components.serve.verdict import deployment, refusal
from narrowcast.errors import NarrowcastError, nearest
from narrowcast.records import digest, read_json, write_json, writing_directory

Location = str | os.PathLike[str]
CURRENT = "current"
ANNOUNCED = "server.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """What serves under a name: the content of `<home>/endpoints/<name>.json`."""

    name: str
    model: str
    url: str
    pid: int
    model_path: str
    model_md5: str
    store_path: str
    started: str
    grpc_url: str | None = None
    code: str | None = None
    """md5 of what the process runs, from `process.code_md5`."""

    def answers(self) -> bool:
        return process.is_running(self.pid) and client.is_ready(self.url, self.model)

    def status(self) -> dict[str, Any]:
        shown = {key: getattr(self, key) for key in ("model", "url", "pid", "model_md5", "started")}
        return {"endpoint": self.name, **shown, "alive": self.answers()}


def deploy(
    packed_model: Location,
    feature_store: Location,
    evaluation: Location,
    endpoint: str,
    home: Location,
    target: Location,
) -> None:
    """Put a model that passed its gates behind the endpoint, or keep what is there, and write `deployment.json`.

    A model whose server does not answer is no failure of the step: the champion stays and `reason` says why.
    """
    champion = _find(home, endpoint) if endpoint else None
    refused = refusal(read_json(Path(evaluation) / "evaluation.json"), endpoint)
    deployment(endpoint, champion, refused, lambda: replace(endpoint, home, packed_model, feature_store)).save(target)


def replace(endpoint: str, home: Location, packed_model: Location, feature_store: Location) -> Endpoint:
    """Serve a packed model at the endpoint, asking no gate; where it already serves and answers, it is left alone.

    A server that runs this code takes the new model over, at the same address. Any other answers until a new one does;
    then the state file is switched and the old one ends.

    Raises:
        NarrowcastError: if the new model does not answer; the endpoint is then as it was.
    """
    md5 = digest(packed_model)
    with _locked(home, endpoint):
        old = _find(home, endpoint)
        if old and old.model_md5 == md5 and old.answers():
            return old
        with writing_directory(_folder(home) / endpoint / md5) as folder:
            shutil.copytree(packed_model, folder / "model")
            shutil.copytree(feature_store, folder / "store")
        return _switch(endpoint, home, md5, old)


def start(endpoint: str, home: Location) -> Endpoint:
    """Serve again what was deployed at the endpoint last, unless it answers already, as after a reboot."""
    with _locked(home, endpoint):
        old = read_endpoint(home, endpoint)
        return old if old.answers() else _switch(endpoint, home, old.model_md5, old)


def _switch(endpoint: str, home: Location, md5: str, old: Endpoint | None) -> Endpoint:
    """Have the copied model `md5` served, by the endpoint's server or a new one, and make it the endpoint's."""
    folder = (_folder(home) / endpoint / md5).resolve()
    model, store = folder / "model", folder / "store"
    with _current(folder):
        server = _swapped(folder, md5, old) or _started(folder)
    new = Endpoint(
        name=endpoint,
        model=server.name,
        url=server.url,
        pid=server.pid,
        model_path=str(model),
        model_md5=md5,
        store_path=str(store),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        grpc_url=server.grpc_url,
        code=process.code_md5(),
    )
    write_json(_state(home, endpoint), asdict(new))
    if old and old.pid != new.pid:
        process.stop(old.pid)
    # A run may still be judging against the previous model; older ones nobody needs.
    for other in folder.parent.iterdir():
        if other.is_dir() and not other.is_symlink() and other.name not in {md5, old.model_md5 if old else md5}:
            shutil.rmtree(other, ignore_errors=True)
    return new


def _swapped(folder: Path, md5: str, old: Endpoint | None) -> process.Server | None:
    """The endpoint's server once it answers with the model in `folder`; None where a new process is needed."""
    if not old or old.code != process.code_md5() or not old.answers():
        return None
    try:
        return process.swap(old.pid, folder.parent / ANNOUNCED, md5)
    except process.ServerEndedError:
        return None


def _started(folder: Path) -> process.Server:
    """A new server that follows the endpoint's link."""
    log = folder.parent / "server.log"
    if log.exists():
        log.replace(log.with_suffix(".log.old"))  # a server that still runs goes on writing there
    model, store = folder.parent / CURRENT / "model", folder.parent / CURRENT / "store"
    return process.start(model, store, log, outlive=True, announce=folder.parent / ANNOUNCED)


@contextlib.contextmanager
def _current(folder: Path) -> Iterator[None]:
    """The endpoint's link leads to `folder`, and back to where it led if the block fails."""
    link = folder.parent / CURRENT
    before = link.readlink() if link.is_symlink() else None
    _lead(link, Path(folder.name))
    try:
        yield
    except BaseException:
        if before:
            _lead(link, before)
        raise


def _lead(link: Path, target: Path) -> None:
    """Make the link, or turn it, at once."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def stop(endpoint: str, home: Location) -> dict[str, Any]:
    """End the endpoint's server, if one runs. What was deployed stays, for `start`. Returns its `status` before."""
    found = read_endpoint(home, endpoint)
    with _locked(home, endpoint):
        before = found.status()
        process.stop(found.pid)
    return before


def status(home: Location) -> list[dict[str, Any]]:
    """`endpoint`, `model`, `url`, `pid`, `model_md5`, `started` and `alive` of every endpoint, by name."""
    return [read_endpoint(home, name).status() for name in _names(home)]


def read_endpoint(home: Location, endpoint: str) -> Endpoint:
    """The endpoint's state. Raises NarrowcastError where nothing was ever deployed under that name."""
    found = _find(home, endpoint)
    if found:
        return found
    names = _names(home)
    hint = nearest(endpoint, names) if names else "deploy with `narrowcast run` first"
    raise NarrowcastError(f"nothing is deployed at endpoint '{endpoint}' under {home}: {hint}")


def champion_path(home: Location, endpoint: str) -> str:
    """Folder of the packed model now deployed, or an empty string: what a run passes as `champion`."""
    found = _find(home, endpoint)
    return found.model_path if found and Path(found.model_path).is_dir() else ""


def _find(home: Location, endpoint: str) -> Endpoint | None:
    path = _state(home, endpoint)
    if not path.is_file():
        return None
    try:
        return Endpoint(**read_json(path))
    except TypeError:
        raise NarrowcastError(f"{path} is not an endpoint's state: delete it and deploy again") from None


def _names(home: Location) -> list[str]:
    """Endpoints with a state file; each has a folder of the same name."""
    return sorted(path.stem for path in _folder(home).glob("*.json") if path.with_suffix("").is_dir())


def _folder(home: Location) -> Path:
    return Path(home) / "endpoints"


def _state(home: Location, endpoint: str) -> Path:
    """The endpoint's state file. Raises NarrowcastError for a name that could lead elsewhere."""
    if not endpoint or not all(letter.isalnum() or letter in "-_" for letter in endpoint):
        raise NarrowcastError(f"'{endpoint}' cannot name an endpoint: use letters, digits, '-' and '_'")
    return _folder(home) / f"{endpoint}.json"


@contextlib.contextmanager
def _locked(home: Location, endpoint: str) -> Iterator[None]:
    """One deployment at a time an endpoint; a second waits for the first."""
    path = _state(home, endpoint).with_name(f".{endpoint}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
