"""A tiny trained, searched-by-hand and packed model with its feature store, made once a session; Redis servers."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from narrowcast.components.compact.pack import pack
from narrowcast.components.data.encode import encode
from narrowcast.components.features.build import build_features
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.run import train_from_plan, train_full
from narrowcast.records import write_json


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """Folders of one run's artifacts, by the names of the pipeline."""

    frame: Path
    feature_store: Path
    encoded: Path
    full_model: Path
    plan: Path
    compact_model: Path
    packed_model: Path


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset, tiny_schema, tmp_path_factory) -> Artifacts:
    """8-bit tables of half the columns; two epochs."""
    folder = tmp_path_factory.mktemp("run")
    made = Artifacts(**{name: folder / name for name in Artifacts.__annotations__})
    config = TrainConfig(epochs=2, batch_size=256)
    build_features(tiny_dataset, tiny_schema, 0, made.frame, made.feature_store)
    encode(made.frame, tiny_schema, made.encoded)
    train_full(made.encoded, config, made.full_model, width=8, inner_width=0)
    full = Plan.load(made.full_model / "plan.json")
    tables = {
        name: TablePlan(rows=table.rows, blocks=(Block(start=0, stop=table.rows, columns=(0, 1, 2, 3), bits=8),))
        for name, table in full.tables.items()
    }
    plan = Plan(width=8, tables=tables, method="by hand")
    plan.save(made.plan / "plan.json")
    write_json(made.plan / "search.json", {"budget_bytes": plan.stored_bytes()})
    train_from_plan(made.encoded, made.plan, config, made.compact_model)
    pack(made.compact_model, made.encoded, made.frame, tiny_schema, made.packed_model)
    return made


@pytest.fixture(scope="session")
def another_model(tiny_run, tiny_schema, tmp_path_factory) -> Path:
    """A packed model of the same plan that scores otherwise."""
    folder = tmp_path_factory.mktemp("another")
    train_from_plan(tiny_run.encoded, tiny_run.plan, TrainConfig(epochs=1, batch_size=256, seed=7), folder / "compact")
    pack(folder / "compact", tiny_run.encoded, tiny_run.frame, tiny_schema, folder / "packed")
    return folder / "packed"


class RedisServer:
    """A Redis without persistence on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--logfile", str(folder / "redis.log"), *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, "Redis does not start"
            time.sleep(0.05)

    def hang(self) -> None:
        """It takes connections and requests, and answers none."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start_redis(tmp_path):
    """Starts a `RedisServer` with options of its own."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    with contextlib.ExitStack() as started:

        def start(*options: str) -> RedisServer:
            server = RedisServer(tmp_path, *options)
            started.callback(server.stop)
            return server

        yield start
