"""Ranking end to end: one user and many candidates over HTTP, features looked up with Feast, scorers by turns.

    python benchmarks/serving.py --rates 10 20 40 80 160

The same server with several scorers behind it, all started at once and asked by turns: the packed int8 model, amortised
(the history read once for all candidates; kept between a user's requests, or not), the float32 model amortised, and the
float32 model as it would be without any of it, each candidate with its own copy of the history, in torch and in ONNX
Runtime. Models are not trained, as their speed does not depend on their values; users have full histories. A request
names a user, the candidates and the context; everything else is looked up in the feature store (SQLite).

First one request at a time: the client's latency, the model's part of it (measured inside the server), and the rest:
protocol, parsing, look-ups, encoding, answer, and the way there and back. The floor of the rest is a request that does
nothing, `/v2/health/live`. Then requests at times drawn beforehand, whatever the answers do, at rising rates.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd
from libraries import machine, settings
from load.generator import Answer, run
from load.http1 import HttpSender, request_bytes
from load.summary import Summary
from load.sweep import as_json, chart, measure
from load.sweep import table as load_table
from memory import plan_of
from rich.console import Console
from rich.progress import track
from rich.table import Table

from narrowcast.components.compact.export import export
from narrowcast.components.compact.pack import pack
from narrowcast.components.data.encode import encode
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Schema
from narrowcast.components.data.synth import synth
from narrowcast.components.features.build import build_features
from narrowcast.components.serve import client
from narrowcast.components.train.checkpoint import save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.model import CTRModel
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json, write_text

STAGES = ("parse", "lookup", "encode", "queue", "score", "respond")
SECONDS_TO_START = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A server that is measured: its packed model, what scores in it, and the server's other options."""

    model: str
    scorer: str
    options: tuple[str, ...] = ()


KINDS = {
    "int8 amortised": Kind(model="int8", scorer="amortised"),
    "int8 amortised, not kept": Kind(model="int8", scorer="amortised", options=("--cache-bytes", "0")),
    "float32 amortised": Kind(model="float32", scorer="amortised"),
    "float32 one by one": Kind(model="float32", scorer="one-by-one"),
    "ONNX one by one": Kind(model="float32", scorer="onnx-one-by-one"),
    "ONNX amortised": Kind(model="float32", scorer="onnx-amortised"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A started server."""

    name: str
    url: str
    log: Path


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Synthetic clicks, their feature store, and the untrained models packed from them; nothing if they are there."""
    wanted = {name: getattr(options, name) for name in ("rows", "users", "items", "length", "width", "backbone")}
    wanted |= {"layers": options.layers, "model_width": options.model_width}
    if (folder / "prepared.json").is_file() and read_json(folder / "prepared.json") == wanted:
        return
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "serving"
        synth(raw, rows=options.rows, users=options.users, items=options.items)
        schema = Schema.load(raw / "schema.yaml")
        schema = replace(schema, history=replace(schema.history, max_length=options.length, positive_only=False))
        ingest(raw, schema, Path(scratch) / "dataset")
        build_features(Path(scratch) / "dataset", schema, 0, folder / "frame", folder / "store")
        encode(folder / "frame", schema, folder / "encoded")
        layout = EncodedData(folder / "encoded").layout
        transformer = {
            "num_layers": options.layers,
            "model_width": options.model_width,
            "max_positions": options.length,
        }
        config = ModelConfig(backbone=options.backbone, history="append", history_settings=transformer, init_std=0.1)
        for name, bits in (("float32", 32), ("int8", 8)):
            model = CTRModel(layout, plan_of(layout.table_rows, options.width, bits), config, seed=0)
            save_checkpoint(Path(scratch) / "checkpoint", model)
            pack(Path(scratch) / "checkpoint", folder / "encoded", folder / "frame", schema, folder / name)
        export(folder / "float32", folder / "onnx")
    write_json(folder / "prepared.json", wanted)


@contextlib.contextmanager
def started(kind: Kind, folder: Path, scratch: Path, threads: int) -> Iterator[Running]:
    """A server of that kind until the block ends. Raises NarrowcastError with its last words if it does not start."""
    scratch.mkdir()
    announce, log = scratch / "server.json", scratch / "server.log"
    command = [sys.executable, "-m", "load.scored_by", kind.scorer, "--threads", str(threads)]
    command += ["--onnx", str(folder / "onnx"), "--", "--model", str(folder / kind.model), "--port", "0"]
    command += ["--store", str(folder / "store"), "--announce", str(announce), "--access-log"]
    command += ["--store-deadline-ms", "1000", *kind.options]  # for a busy machine: defaults would be no look-ups
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": str(threads)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not announce.is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NarrowcastError(f"a server did not start: {log.read_text()[-500:]}")
            time.sleep(0.1)
        told = read_json(announce)
        yield Running(name=told["name"], url=told["url"], log=log)
    finally:
        process.terminate()
        process.wait(30)


def requests(folder: Path, count: int, candidates: int, users: int) -> list[dict[str, Any]]:
    """v2 bodies: a user with a full history and candidates drawn by how often the log shows them."""
    frame = pd.read_parquet(folder / "frame" / "frame.parquet", columns=["user_id", "item_id"])
    rng = np.random.default_rng(0)
    busiest = frame["user_id"].value_counts().index[:users].to_numpy()
    shown = frame["item_id"].value_counts()
    share = shown.to_numpy() ** 0.5  # the rare ones too, as a recall stage would give
    made = []
    for i in range(count):
        items = rng.choice(shown.index.to_numpy(), candidates, replace=False, p=share / share.sum())
        values = {"user_id": [busiest[i % len(busiest)]], "item_id": items.tolist(), "device": ["tv"], "slot": ["1"]}
        tensors = [{"name": n, "shape": [len(v)], "datatype": "BYTES", "data": v} for n, v in values.items()]
        made.append({"id": f"r{i}", "inputs": tensors})
    return made


def wires(server: Running, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
    path = f"/v2/models/{server.name}/infer"
    headers = {"Content-Type": "application/json"}
    return [request_bytes("POST", server.url, path, json.dumps(body).encode(), headers) for body in bodies]


async def ask_each(server: Running, sent: Sequence[bytes]) -> tuple[list[float], list[Answer]]:
    """Milliseconds and answers of requests one at a time over one connection."""
    send = HttpSender(server.url, lambda index: sent[index])
    taken, answers = [], []
    for index in range(len(sent)):
        started_at = time.perf_counter()
        answers.append(await send(index))
        taken.append((time.perf_counter() - started_at) * 1e3)
    await send.close()
    if failed := [answer for answer in answers if answer.status != 200]:
        raise NarrowcastError(f"the server answered {failed[0].status}: {failed[0].body[:300]!r}")
    return taken, answers


def one_at_a_time(
    servers: dict[str, Running], bodies: list[dict[str, Any]], rounds: int, console: Console
) -> tuple[dict[str, dict[str, Any]], float]:
    """Figures by server over the rounds, the servers by turns; the first round is a warm-up. And the largest difference
    between a float32 server's answers and the first one's."""
    latencies: dict[str, list[float]] = {name: [] for name in servers}
    floors: dict[str, list[float]] = {name: [] for name in servers}
    marks, stages, answers = {}, {}, {}
    for turn in track(range(rounds + 1), "one at a time", console=console):
        for name, server in servers.items():
            if turn == 1:
                marks[name], stages[name] = server.log.stat().st_size, read_stages(server)
            taken, answers[name] = run(ask_each(server, wires(server, bodies)))
            nothing = request_bytes("GET", server.url, "/v2/health/live")
            floor, _ = run(ask_each(server, [nothing] * 20))
            if turn:
                latencies[name] += taken
                floors[name] += floor
    found = {}
    for name, server in servers.items():
        score = [line["score_ms"] for line in read_log(server.log, marks[name])]
        after = read_stages(server)
        found[name] = {
            "p50_ms": median(latencies[name]),
            "p99_ms": float(np.percentile(latencies[name], 99)),
            "model_p50_ms": median(score),
            "outside_p50_ms": median(np.subtract(latencies[name], score)),
            "nothing_p50_ms": median(floors[name]),
            "stages_mean_ms": {
                stage: 1e3 * (after[stage][0] - before[0]) / max(after[stage][1] - before[1], 1)
                for stage, before in stages[name].items()
            },
        }
    exact = [name for name in servers if KINDS[name].model == "float32"]
    scores = {name: [client.probabilities(json.loads(a.body)) for a in answers[name]] for name in exact}
    differences = [np.abs(np.subtract(scores[name], scores[exact[0]])).max() for name in exact[1:]]
    return found, float(max(differences, default=0.0))


def under_load(
    servers: dict[str, Running], bodies: Sequence[dict[str, Any]], rates: list[float], seconds: float, console: Console
) -> dict[str, list[Summary]]:
    """Figures at rising rates, the servers by turns, each up to the first rate that it does not keep up with."""
    found: dict[str, list[Summary]] = {name: [] for name in servers if rates}
    for rate in track(rates, "under load", console=console):
        for name, summaries in found.items():
            if summaries and summaries[-1].saturated:
                continue
            sent = wires(servers[name], bodies)
            summaries.append(run(measure(servers[name].url, lambda i, sent=sent: sent[i % len(sent)], rate, seconds)))
            settle(servers[name])
    return found


def settle(server: Running, seconds: float = 120.0) -> None:
    """Wait until the server has done what it took, also for clients that gave up."""
    deadline = time.monotonic() + seconds
    while read_metrics(server, "narrowcast_requests_in_flight"):
        if time.monotonic() > deadline:
            raise NarrowcastError(f"the server at {server.url} is still busy after {seconds:.0f} s: give lower --rates")
        time.sleep(0.2)


def read_metrics(server: Running, start: str, *marks: str) -> float:
    """Sum of the metrics whose lines begin with `start` and hold all `marks`."""
    with urlopen(f"{server.url}/metrics") as stream:
        lines = stream.read().decode().splitlines()
    found = [line for line in lines if line.startswith(start) and all(mark in line for mark in marks)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def read_stages(server: Running) -> dict[str, tuple[float, float]]:
    """Seconds and count of every stage so far."""
    return {
        stage: (
            read_metrics(server, "narrowcast_stage_seconds_sum", f'stage="{stage}"'),
            read_metrics(server, "narrowcast_stage_seconds_count", f'stage="{stage}"'),
        )
        for stage in STAGES
    }


def read_log(path: Path, start: int) -> list[dict[str, Any]]:
    """Access lines from byte `start` on, in the order answered."""
    with path.open("rb") as stream:
        stream.seek(start)
        lines = [json.loads(line) for line in stream if line.startswith(b"{")]
    return [line for line in lines if line["event"] == "answered"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--length", type=int, default=100, help="of the histories")
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic events")
    parser.add_argument("--users", type=int, default=300, help="of the synthetic log")
    parser.add_argument("--items", type=int, default=20_000, help="of the synthetic log")
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--width", type=int, default=16, help="of the tables")
    parser.add_argument("--model-width", type=int, default=64, help="of the history's transformer")
    parser.add_argument("--layers", type=int, default=2, help="of the history's transformer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every scorer")
    parser.add_argument("--requests", type=int, default=100, help="of a turn, one at a time")
    parser.add_argument("--askers", type=int, default=50, help="users who ask, in turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every server")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[5, 10, 20, 40, 80, 160, 320], help="requests a second"
    )
    parser.add_argument("--seconds", type=float, default=15, help="of load at each rate")
    parser.add_argument("--prepared", type=Path, default=Path(".narrowcast/benchmarks/serving"), help="kept models")
    parser.add_argument("--out", type=Path, default=Path("serving.json"), help="JSON to write")
    parser.add_argument("--chart", type=Path, help="SVG to write")
    options = parser.parse_args()
    if options.items < 2 * options.candidates or options.askers > options.users:
        raise NarrowcastError("give at least twice as many items as candidates, and no more askers than users")
    console = Console()
    with console.status("preparing data and models"), contextlib.redirect_stdout(sys.stderr):
        prepare(options.prepared, options)
    bodies = requests(options.prepared, options.requests, options.candidates, options.askers)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for i, name in enumerate(track(options.kinds, "starting servers", console=console)):
            context = started(KINDS[name], options.prepared, scratch / str(i), options.threads)
            servers[name] = stack.enter_context(context)
        found, difference = one_at_a_time(servers, bodies, options.rounds, console)
        _print(console, f"one at a time, {options.candidates} candidates, history {options.length}", found)
        console.print(f"float32 answers differ by at most {difference:.1g}")
        loads = under_load(servers, bodies, sorted(options.rates), options.seconds, console)
        for name, summaries in loads.items():
            console.print(load_table(name, summaries))
    result = {
        "machine": machine(),
        "settings": settings(options),
        "one_at_a_time": found,
        "float32_difference": difference,
        "loads": {name: as_json(summaries) for name, summaries in loads.items()},
    }
    write_json(options.out, result)
    if options.chart and loads:
        write_text(options.chart, chart(loads))


def _print(console: Console, title: str, found: dict[str, dict[str, Any]]) -> None:
    whole = Table("p50, ms", "whole", "whole, p99", "model", "rest", "rest / model", "nothing", title=title)
    stages = Table("mean, ms", *STAGES, title="inside the server")
    for name, row in found.items():
        figures = [row[key] for key in ("p50_ms", "p99_ms", "model_p50_ms", "outside_p50_ms")]
        figures += [row["outside_p50_ms"] / row["model_p50_ms"], row["nothing_p50_ms"]]
        whole.add_row(name, *(f"{figure:.2f}" for figure in figures))
        stages.add_row(name, *(f"{row['stages_mean_ms'][stage]:.2f}" for stage in STAGES))
    console.print(whole, stages)


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
