"""A server as a process of its own: start, wait until it answers, stop."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

import narrowcast
from narrowcast.components.serve import client
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json

SERVER = "narrowcast.components.serve.server"
STAY = b"stay"
"""Told to a tied server that is to outlive its caller."""
SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 15.0


class ServerEndedError(NarrowcastError):
    """The process is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A process that serves the model `model_md5` as `name` at `url`, and at `grpc_url` over gRPC.

    Where it has a `lifeline` it ends when that is closed, as when we end.
    """

    name: str
    url: str
    grpc_url: str
    pid: int
    model_md5: str
    lifeline: IO[bytes] | None = None


def start(
    model: Path,
    store: Path,
    log: Path,
    *,
    outlive: bool,
    announce: Path | None = None,
    options: Sequence[str] = (),
    seconds: float = SECONDS_TO_START,
) -> Server:
    """Start a server on free ports and return once it answered its sample request over HTTP.

    Its output goes to `log`. With `outlive` it is in a session of its own, which no signal to this one reaches, and
    stays when this process ends; else it ends with the `Server` returned here. `model` and `store` may be links, which
    `swap` follows anew; it needs a file `announce` that stays. `options` are the server's other ones.

    Raises:
        NarrowcastError: with the server's own reason; nothing is left running then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        announce = announce or Path(folder) / "server.json"
        announce.unlink(missing_ok=True)
        command = [sys.executable, "-m", SERVER, "--model", str(model.absolute()), "--store", str(store.absolute())]
        command += ["--port", "0", "--grpc-port", "0", "--announce", str(announce.absolute()), "--tied", *options]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=outlive
        )
        assert process.stdin
        try:
            with Console(stderr=True).status("Starting the server"):
                _wait_for(announce, process, log, seconds)
            server = _announced(announce, None if outlive else process.stdin)
            sample = read_json(model / "sample_request.json")
            answer = client.probabilities(client.infer(server.url, server.name, sample["request"]["inputs"]))
            if len(answer) != len(sample["expected"]):
                raise NarrowcastError(
                    f"the server answered {len(answer)} of {len(sample['expected'])} candidates: see {log}"
                )
            if outlive:
                process.stdin.write(STAY)
                process.stdin.close()
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = 0  # the server is meant to outlive this object
    return server


def swap(pid: int, announce: Path, model_md5: str, *, seconds: float = SECONDS_TO_START) -> Server:
    """Have a running server load what its links lead to now, and return once it answers with the model `model_md5`.

    Raises:
        ServerEndedError: where the server ended over it.
        NarrowcastError: with the server's own reason; it then answers with the model that it had.
    """
    announce.unlink(missing_ok=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if announce.is_file():
            told = read_json(announce)
            if told["error"]:
                raise NarrowcastError(told["error"])
            if told["model_md5"] == model_md5:
                return _announced(announce, None)
        if not is_running(pid):
            raise ServerEndedError(f"the server with pid {pid} ended while it loaded the new model: see its log")
        time.sleep(0.05)
    raise NarrowcastError(f"the server with pid {pid} did not load the new model within {seconds:.0f} s: see its log")


def code_md5() -> str:
    """md5 of the interpreter's path and version and of this package's sources: what a running server is made of."""
    root = Path(narrowcast.__file__).parent
    folders = [root, *((root / name).resolve() for name in ("components", "feature_repo"))]
    md5 = hashlib.md5(f"{sys.executable} {sys.version}".encode(), usedforsecurity=False)
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            md5.update(f"{file.relative_to(folder).as_posix()} {digest(file)}\n".encode())
    return md5.hexdigest()


def _announced(announce: Path, lifeline: IO[bytes] | None) -> Server:
    told = read_json(announce)
    return Server(**{key: told[key] for key in ("name", "url", "grpc_url", "pid", "model_md5")}, lifeline=lifeline)


def _wait_for(announce: Path, process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not announce.is_file():
        if process.poll() is not None:
            raise NarrowcastError(
                f"the server ended before it was ready: {last_words(log.read_text(errors='replace'))}"
            )
        if time.monotonic() > deadline:
            raise NarrowcastError(f"the server was not ready within {seconds:.0f} s: see {log}")
        time.sleep(0.05)


def last_words(log: str) -> str:
    """The sentence that a program printed, or its log's last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return sentences[-1] if sentences else lines[-1].strip() if lines else "it said nothing"


def is_running(pid: int) -> bool:
    """Whether `pid` is a live process and one of our servers: pids are used again after a reboot."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return SERVER in _command_line(pid)


def stop(pid: int, *, seconds: float = SECONDS_TO_STOP) -> bool:
    """End a server, running requests answered first; whether there was one. Any other process is left alone."""
    if not is_running(pid):
        return False
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not is_running(pid):
                return True
            time.sleep(0.02)
    raise NarrowcastError(f"the server with pid {pid} does not end: end it by hand")


def _command_line(pid: int) -> str:
    """Empty for a process that does not exist or has ended."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout
