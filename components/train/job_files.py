"""Files that all machines of a Ray cluster work on: an address that each of them reads, and its copy on each.

A step that runs as a job on a cluster finds its folder's address in the environment; where there is none, the cluster
is this machine and an address is a path.
"""

import fcntl
import os
import tempfile
from pathlib import Path

from narrowcast.objects import fetch, is_remote, join

JOB = "NARROWCAST_JOB"
"""Environment variable with the address of the job's folder."""
JOB_FILE = "job.json"


def job_folder(name: str) -> str | None:
    """The address of a folder of the job, or None without a job."""
    job = os.environ.get(JOB)
    return join(job, name) if job else None


def local_path(address: str) -> Path:
    """Where a machine keeps its copy of what lies at an address of object storage."""
    return _copies() / address.replace("://", "/", 1)


def address_of(path: str | Path) -> str:
    """Where every machine finds a file or folder of this one: the inverse of `local_path`, or the path itself."""
    path = Path(path).resolve()
    if not path.is_relative_to(_copies()):
        return str(path)
    scheme, *names = path.relative_to(_copies()).parts
    return f"{scheme}://{'/'.join(names)}"


def local_copy(address: str) -> Path:
    """What lies at an address, on this machine; fetched once, whichever of its processes comes first."""
    if not is_remote(address):
        return Path(address)
    path = local_path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            fetch(address, path)
    return path


def _copies() -> Path:
    return Path(tempfile.gettempdir()).resolve() / "narrowcast-copies"
