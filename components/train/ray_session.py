"""A Ray to run on: the cluster that RAY_ADDRESS names, or one started in this process and stopped after use."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import ray

from narrowcast.components.train.ray_defaults import DEFAULTS, OBJECT_STORE_BYTES
from narrowcast.errors import NarrowcastError


@contextlib.contextmanager
def ray_session(num_cpus: int) -> Iterator[None]:
    """Ray is initialised inside the block: joined at RAY_ADDRESS, or started here with room for `num_cpus` processes.

    A local Ray keeps its files in a temporary folder and is gone after the block. A Ray that already runs in this
    process is used as it is. Raises NarrowcastError when Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        with _initialised(f"cannot join the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']}"):
            yield
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it, and their paths must stay under 108 bytes
    try:
        with _initialised(
            "cannot start Ray on this machine",
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _initialised(failure: str, **settings: Any) -> Iterator[None]:
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ray.exceptions.RayError, ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        ray.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise NarrowcastError(f"{failure} ({reason}): set num_workers to 0 to train without Ray") from None
    try:
        yield
    finally:
        ray.shutdown()
