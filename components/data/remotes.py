"""A DVC remote, with the settings that DVC's own config has for its address, read and written file by file."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.fs import get_cloud_fs
from dvc.repo import Repo
from fsspec.asyn import sync

from narrowcast.components.data import remote_kinds  # noqa: F401  DVC takes its S3 and SSH
from narrowcast.components.data.remote_errors import is_no_bucket, sentence
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest

ANSWER_SECONDS = 20
"""A remote that is asked for the first time and takes longer is not there."""


class Remote:
    """The remote at an address (`s3://bucket/prefix`, `ssh://user@host:port/folder`, or a folder).

    Settings come from the remote of that address in the DVC config of the checkout around `root`, of the user or of the
    machine, where there is one, and from the environment. It is reached at once; a folder that is not there is refused
    unless it is for `writing`. Every failure is a NarrowcastError of one sentence.
    """

    def __init__(self, address: str, *, root: Path | None = None, writing: bool = False) -> None:
        self.address = address
        with self._told("use"):
            config = dvc_config(root)
            known = [name for name, own in config["remote"].items() if own["url"].rstrip("/") == address.rstrip("/")]
            kind, settings, self.root = get_cloud_fs(config, **({"name": known[0]} if known else {"url": address}))
            self.fs = kind(**settings)
            client = self.fs.fs  # SSH connects
        if self.fs.protocol == "local" and not writing and not Path(self.root).is_dir():
            raise NarrowcastError(
                f"DVC remote {address} does not exist: take a snapshot here, or name the remote that holds the data"
            )
        if client.async_impl:  # S3 answers, or this ends before it has been asked as often as in a transfer
            with contextlib.suppress(FileNotFoundError), self._told("read", missing_passes=True):
                sync(client.loop, client._ls, self.root, timeout=ANSWER_SECONDS)

    def download(self, path: str, target: Path) -> None:
        """Copy the file `path` to `target`. Raises FileNotFoundError where it is not there."""
        with self._told("read", missing_passes=True):
            self.fs.get_file(self._place(path), str(target))

    def read(self, path: str) -> str:
        """The text of the file `path`. Raises FileNotFoundError where it is not there."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            self.download(path, copy)  # to open it in place s3fs asks by HEAD, and a refusal of that has no reason
            return copy.read_text(errors="replace")

    def write(self, path: str, text: str) -> None:
        """Write the file `path`, whole or not at all."""
        with self._told("write to"):
            self.fs.put_file(BytesIO(text.encode()), self._place(path))

    def names(self, folder: str) -> list[str]:
        """Names of the files in `folder`, sorted; none where it is not there."""
        with contextlib.suppress(FileNotFoundError), self._told("read", missing_passes=True):
            return sorted(self.fs.name(path) for path in self.fs.ls(self._place(folder), detail=False))
        return []

    def fetch(self, md5: str, target: Path, version: str) -> None:
        """Copy the object of that md5, a part of `version`, to `target` and check it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.download(object_path(md5), target)
        except FileNotFoundError:
            if md5 == version:
                raise NarrowcastError(
                    f"data version {version} is not on DVC remote {self.address}: run `dvc push` in the checkout where "
                    "its snapshot was taken, or mend the version"
                ) from None
            wrong = "missing"
        else:
            if digest(target) == md5.removesuffix(".dir"):
                return
            wrong = "damaged"
        # DVC looks for the files of a version again only where the version's own object is gone
        raise NarrowcastError(
            f"data version {version} is not whole on DVC remote {self.address} ({object_path(md5)} is {wrong}): remove "
            f"what is left of it and {object_path(version)} there, then run `dvc push` in the checkout where its "
            "snapshot was taken"
        )

    @contextlib.contextmanager
    def pushing(self) -> Iterator[None]:
        """DVC's push inside of this fails with its first object's own reason, which DVC only logs."""
        handler = _Failures()
        logger = logging.getLogger("dvc_data")
        logger.addHandler(handler)
        try:
            yield
        except Exception as error:  # each kind of remote has its client's own exceptions
            cause = handler.found[0] if handler.found else error
            raise NarrowcastError(sentence(cause, self.address, "push to")) from None
        finally:
            logger.removeHandler(handler)

    def _place(self, path: str) -> str:
        return str(self.fs.join(self.root, *path.split("/")))

    @contextlib.contextmanager
    def _told(self, what: str, *, missing_passes: bool = False) -> Iterator[None]:
        """Turn a client's exception into its sentence; a missing file's, but no missing bucket's, may pass."""
        try:
            yield
        except Exception as error:  # each kind of remote has its client's own exceptions
            if missing_passes and isinstance(error, FileNotFoundError) and not is_no_bucket(error):
                raise
            raise NarrowcastError(sentence(error, self.address, what)) from None


class _Failures(logging.Handler):
    """Keeps the exceptions that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.found.append(record.exc_info[1])


def object_path(md5: str) -> str:
    """Where DVC 3 keeps the object of that md5 on a remote."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def dvc_config(root: Path | None = None) -> Config:
    """DVC's config of the checkout around `root` (the working directory if None), of the user and of the machine."""
    try:
        folder = Repo.find_dvc_dir(None if root is None else str(root))
    except DvcException:
        folder = None
    return Config(folder)
