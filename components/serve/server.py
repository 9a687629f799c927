"""The server: a packed model and a feature store behind the Open Inference Protocol v2, over HTTP and gRPC.

python -m narrowcast.components.serve.server --model DIR --store DIR --port 8080

SIGHUP replaces the model by what `--model` and `--store`, which may be links, lead to then; SIGTERM ends the server
once what it took is answered.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import torch
import uvicorn
from starlette.types import ASGIApp

from narrowcast.components.serve import logs
from narrowcast.components.serve.amortised import CACHE_BYTES
from narrowcast.components.serve.grpc_server import grpc_server
from narrowcast.components.serve.logs import event
from narrowcast.components.serve.predictor import MAX_REQUESTS, Predictor
from narrowcast.components.serve.process import STAY
from narrowcast.components.serve.protocol import MAX_CANDIDATES
from narrowcast.components.serve.rest import MAX_BODY_BYTES, Front, ServerDataPlane, kserve_app
from narrowcast.components.serve.threads import Threads
from narrowcast.components.serve.versions import VersionConfig, load_version, schema_name, warm_lookups
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

BACKLOG = 2048
SECONDS_IDLE = 65
"""A connection without a request is closed then; load balancers give up theirs after 60."""
SECONDS_TO_CLOSE = 5.0
SWITCH_SECONDS = 0.0005
"""A thread that computes in Python lets another in after this long, so that the loop answers beside a load."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """`model` and `store` are read again at every swap, so they may be links.

    After SIGTERM requests are still taken for `linger_seconds`, while the server says that it is not ready, so that
    whoever sends them learns of it first; then running ones have `drain_seconds` to end.
    """

    model: Path
    store: Path
    versions: VersionConfig
    max_requests: int = MAX_REQUESTS
    max_body_bytes: int = MAX_BODY_BYTES
    linger_seconds: float = 0.5
    drain_seconds: float = 5.0
    announce: Path | None = None


class Server:
    """Serves on a claimed socket, and over gRPC where a port is given, from `run` until it is told to stop."""

    def __init__(self, config: ServerConfig, name: str, claimed: socket.socket, grpc_port: int | None = None) -> None:
        self.config = config
        self.claimed = claimed
        self.grpc_port = grpc_port
        self.host, port = claimed.getsockname()[:2]
        self.url = f"http://{_address(self.host, port)}"
        self.grpc_url: str | None = None
        self.predictor = Predictor(name, max_requests=config.max_requests)
        self._loader = Threads(1, 1, "loader")
        self._stop = asyncio.Event()
        self._swap = asyncio.Event()

    async def run(self) -> None:
        """Load, answer, swap and end. Raises NarrowcastError where the first version will not do."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._swap.set)
        front = Front(self.predictor, kserve_app(ServerDataPlane(self.predictor)), self.config.max_body_bytes)
        http = _HTTPServer(front, self.config.drain_seconds)
        remote = self._grpc_server()
        serving = asyncio.create_task(http.serve(sockets=[self.claimed]))
        serving.add_done_callback(lambda _: self._stop.set())
        try:
            if remote:
                await remote.start()
            event("loading", model=str(self.config.model), store=str(self.config.store))
            await self._unless_stopped(self._load())
            gc.collect()
            gc.freeze()  # what is loaded now stays: no later collection, and no request, has to wait for a look at it
            if not self._stop.is_set():
                self._announce(None)
                event("ready", url=self.url, grpc_url=self.grpc_url, version=self._md5())
            while await self._unless_stopped(self._swap.wait()):
                self._swap.clear()
                await self._unless_stopped(self._try_swap())
            event("ending")
            front.closing, self.predictor.ready = True, False
            if self._md5():
                await asyncio.sleep(self.config.linger_seconds)
        finally:
            http.should_exit = True
            if remote:
                await remote.stop(self.config.drain_seconds)
            await serving
            self._close()
            event("ended")

    async def _load(self) -> None:
        """Load what the paths lead to now, beside the requests, and let it answer them from then on."""
        config = self.config
        load = partial(load_version, config.model, config.store, config.versions)
        new = await asyncio.wrap_future(self._loader.submit(load))
        old = self.predictor.versions.current
        if old and old.schema.name != new.schema.name:
            new.close()
            raise NarrowcastError(
                f"the new model is of schema '{new.schema.name}', but this server serves '{old.schema.name}': deploy "
                "it to an endpoint of its own"
            )
        await warm_lookups(new)
        self.predictor.versions.switch(new)
        self.predictor.ready = True

    async def _try_swap(self) -> None:
        event("swapping", model=str(self.config.model), store=str(self.config.store))
        old = self._md5()
        reason: str | None = None
        try:
            await self._load()
        except NarrowcastError as error:
            reason = str(error)
        except Exception as error:
            reason = f"the new version failed to load ({type(error).__name__}: {error}): see the server's log"
            event("swap failed", level=logging.ERROR, failure=error)
        if reason is None:
            self.predictor.metrics.swaps.inc()
            event("swapped", old=old, version=self._md5())
        else:
            self.predictor.metrics.failed_swaps.inc()
            event("swap refused", level=logging.ERROR, reason=reason, version=old)
        self._announce(reason)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result; None, and the work is left, once the server is to stop."""
        stop, task = asyncio.create_task(self._stop.wait()), asyncio.create_task(work)
        await asyncio.wait((stop, task), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stop.is_set():
            task.cancel()
            return None
        return task.result()

    def _md5(self) -> str | None:
        current = self.predictor.versions.current
        return current.md5 if current else None

    def _announce(self, error: str | None) -> None:
        """Say what answers where, and why the last attempt to replace it failed, if it did."""
        if self.config.announce:
            told = {"name": self.predictor.name, "url": self.url, "grpc_url": self.grpc_url, "pid": os.getpid()}
            write_json(self.config.announce, {**told, "model_md5": self._md5(), "error": error})

    def _grpc_server(self) -> grpc.aio.Server | None:
        if self.grpc_port is None:
            return None
        remote, port = grpc_server(self.predictor, self.host, self.grpc_port, self.config.max_body_bytes)
        self.grpc_url = _address(self.host, port)
        return remote

    def _close(self) -> None:
        self.predictor.batcher.close()
        if current := self.predictor.versions.current:
            current.close()


class _HTTPServer(uvicorn.Server):
    """Leaves the signals to us."""

    def __init__(self, app: ASGIApp, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=SECONDS_IDLE,
            timeout_graceful_shutdown=math.ceil(drain_seconds),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def claim_port(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises NarrowcastError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        claimed = socket.socket(family, socket.SOCK_STREAM)
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind((host, port))
        claimed.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NarrowcastError(
            f"cannot listen on {host}:{port} ({reason}): free the port or give another with --port"
        ) from None
    return claimed


def end_with_caller(seconds: float) -> None:
    """Wait until standard input closes, then end this process; return where the caller tells it to stay."""
    if os.read(sys.stdin.fileno(), len(STAY)) == STAY:
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="narrowcast.components.serve.server", description="Serve a packed model.")
    parser.add_argument("--model", type=Path, required=True, help="packed model, or a link to it")
    parser.add_argument("--store", type=Path, required=True, help="feature store, or a link to it")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free port")
    parser.add_argument("--grpc-port", type=int, help="serve gRPC too; 0 takes any free port")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers other machines too")
    parser.add_argument("--name", help="model name in the address; the schema's name if left out")
    parser.add_argument("--announce", type=Path, help="file to write the address and version to, anew at every swap")
    parser.add_argument("--tied", action="store_true", help="end when standard input closes, unless told to stay")
    parser.add_argument("--max-candidates", type=_positive, default=MAX_CANDIDATES, help="of one request")
    parser.add_argument("--max-body-bytes", type=_positive, default=MAX_BODY_BYTES, help="of one request")
    parser.add_argument("--max-requests", type=_positive, default=MAX_REQUESTS, help="answered at a time; 503 beyond")
    parser.add_argument("--cache-bytes", type=int, default=CACHE_BYTES, help="of encoded histories that are kept")
    parser.add_argument("--store-deadline-ms", type=float, default=50.0, help="then defaults stand for the store")
    parser.add_argument("--linger-seconds", type=float, default=0.5, help="of answering on after SIGTERM, not ready")
    parser.add_argument("--drain-seconds", type=float, default=5.0, help="that running requests then have to end")
    parser.add_argument("--threads", type=_positive, help="that score; one a core if left out")
    parser.add_argument("--request-log", type=Path, metavar="DIR", help="log requests and answers there, as Parquet")
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info")
    parser.add_argument("--access-log", action="store_true", help="log a line a request")
    options = parser.parse_args(arguments)
    config = ServerConfig(
        model=options.model,
        store=options.store,
        versions=VersionConfig(
            max_candidates=options.max_candidates,
            deadline_ms=options.store_deadline_ms,
            cache_bytes=options.cache_bytes,
            request_log=options.request_log,
        ),
        max_requests=options.max_requests,
        max_body_bytes=options.max_body_bytes,
        linger_seconds=options.linger_seconds,
        drain_seconds=options.drain_seconds,
        announce=options.announce,
    )
    if options.tied:
        limit = options.linger_seconds + options.drain_seconds + SECONDS_TO_CLOSE
        threading.Thread(target=end_with_caller, args=[limit], daemon=True).start()
    logs.configure(options.log_level, options.access_log)
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        claimed = claim_port(options.host, options.port)
        with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
            runner.run(_serve(config, options.name or schema_name(options.model), claimed, options.grpc_port))
    except NarrowcastError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


async def _serve(config: ServerConfig, name: str, claimed: socket.socket, grpc_port: int | None) -> None:
    await Server(config, name, claimed, grpc_port).run()


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # all is answered and written; taking the interpreter down piece by piece would take seconds
