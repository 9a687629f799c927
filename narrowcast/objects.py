"""Files and folders by address: a path of this machine, or `s3://bucket/name` on object storage.

S3's endpoint, region and credentials come from the environment, as for AWS's own tools: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from narrowcast.errors import NarrowcastError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

Address = str | os.PathLike[str]
CONNECT_SECONDS = 5
REQUEST_SECONDS = 60
ATTEMPTS = 3


def join(address: Address, *names: str) -> str:
    return "/".join([str(address).rstrip("/"), *names])


def is_remote(address: Address) -> bool:
    """Whether it is on object storage."""
    return "://" in str(address)


def filesystem(address: Address) -> tuple["FileSystem", str]:
    """The file system that an address lies on, and its path there. Raises NarrowcastError for any but `s3://`."""
    from pyarrow import fs

    if not is_remote(address):
        return fs.LocalFileSystem(), str(Path(address).absolute())
    url = urlsplit(str(address))
    if url.scheme != "s3" or not url.netloc:
        raise NarrowcastError(f"'{address}' is no address of object storage: write it as s3://bucket/name")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    place = urlsplit(endpoint) if "://" in endpoint else urlsplit(f"https://{endpoint}")
    store = fs.S3FileSystem(
        endpoint_override=place.netloc or None,
        scheme=place.scheme,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
    return store, f"{url.netloc}{url.path}".rstrip("/")


def exists(address: Address) -> bool:
    from pyarrow.fs import FileType

    with _told("read", address):
        store, path = filesystem(address)
        return bool(store.get_file_info(path).type != FileType.NotFound)


def names(address: Address) -> list[str]:
    """What lies in the folder at an address, by name; nothing where there is none."""
    from pyarrow.fs import FileSelector

    with _told("list", address):
        store, path = filesystem(address)
        return sorted(found.base_name for found in store.get_file_info(FileSelector(path, allow_not_found=True)))


def fetch(address: Address, target: Address) -> None:
    """Copy the file or folder at an address to `target` on this machine, whole or not at all.

    Raises NarrowcastError where nothing is there or the storage refuses.
    """
    from pyarrow import fs

    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _told("read", address), tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        store, path = filesystem(address)
        if store.get_file_info(path).type == fs.FileType.Directory:
            (Path(beside) / "copy").mkdir()  # copying makes the folders below it alone
        fs.copy_files(path, str(Path(beside) / "copy"), source_filesystem=store, destination_filesystem=_local())
        if target.is_dir():
            shutil.rmtree(target)
        (Path(beside) / "copy").rename(target)


def put(source: Address, address: Address) -> None:
    """Copy a file or folder of this machine to an address.

    A file is there whole or not at all, a folder file by file: name it where it is read from once `put` has returned.
    """
    from pyarrow import fs

    with _told("write to", address):
        store, path = filesystem(address)
        if not is_remote(address):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            str(Path(source).absolute()),
            path,
            source_filesystem=_local(),
            destination_filesystem=store,
            use_threads=True,
        )


def read_json(address: Address) -> Any:
    """Raises NarrowcastError where nothing is there, or no JSON."""
    with _told("read", address):
        store, path = filesystem(address)
        with store.open_input_file(path) as stream:
            text = stream.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise NarrowcastError(f"{address} is not valid JSON ({error}): delete it, and what writes it again") from None


def write_json(address: Address, value: Any) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        put(file.name, address)


def delete(address: Address) -> None:
    """Remove a file or folder; nothing there is no error."""
    from pyarrow.fs import FileType

    with _told("delete", address):
        store, path = filesystem(address)
        kind = store.get_file_info(path).type
        if kind == FileType.Directory:
            store.delete_dir(path)
        elif kind == FileType.File:
            store.delete_file(path)


def _local() -> "FileSystem":
    from pyarrow import fs

    return fs.LocalFileSystem()


@contextlib.contextmanager
def _told(verb: str, address: Address) -> Iterator[None]:
    """Turn what the storage's client raises into a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise NarrowcastError(f"cannot {verb} {address}: it does not exist") from None
    except OSError as error:
        mend = (
            "check AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket"
            if is_remote(address)
            else "check its rights and the disk's space"
        )
        raise NarrowcastError(f"cannot {verb} {address} ({' '.join(str(error).split())[:300]}): {mend}") from None
