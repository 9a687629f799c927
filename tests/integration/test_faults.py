"""A server under load while its store fails, while its model is replaced, and while it is told to end."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from load.arrivals import constant, poisson
from load.generator import offer, run
from load.http1 import HttpSender, request_bytes
from load.odd import good_rpc
from load.proxy import Trouble, proxied
from load.rpc import GrpcSender

from narrowcast.components.compact.pack import pack
from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.serve import client, process
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json

pytestmark = pytest.mark.slow
USER, ITEMS = "5", [str(i) for i in range(12)]
DEADLINE_MS = 200
LINGER_SECONDS = 2.0


def ranking(user=USER, items=ITEMS):
    values = {"user_id": [user], "item_id": items, "device": ["tv"]}
    return [{"name": n, "shape": [len(v)], "datatype": "BYTES", "data": v} for n, v in values.items()]


def http(server, *, close=False, times=1):
    """Sends the ranking request, over connections that are kept, or over one for each request; of its candidates
    `times` over."""
    headers = {"Content-Type": "application/json", **({"Connection": "close"} if close else {})}
    tensors = ranking()
    for tensor in tensors:
        if tensor["shape"] != [1]:
            tensor |= {"shape": [tensor["shape"][0] * times], "data": tensor["data"] * times}
    body = json.dumps({"inputs": tensors}).encode()
    request = request_bytes("POST", server.url, f"/v2/models/{server.name}/infer", body, headers)
    return HttpSender(server.url, lambda index: request)


def rpc(server):
    request = good_rpc({"inputs": ranking()}, server.name, raw=False)
    return GrpcSender(server.grpc_url, lambda index: request)


def answered(outcome):
    """An HTTP answer: probabilities, the version, and the owners that defaults stood for."""
    body = json.loads(outcome.answer.body)
    fallbacks = json.loads(body.get("parameters", {}).get("fallbacks", "[]"))
    return np.array(client.probabilities(body), np.float32), body["model_version"], set(fallbacks)


def counted(server, start):
    """Sum of the metrics whose lines begin so."""
    with urllib.request.urlopen(f"{server.url}/metrics") as stream:
        lines = stream.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def expected(packed_model, store, *, user_known=True):
    """What the packed model gives for the ranking request; or with the features of a user without a past."""
    features = OnlineFeatures.load(store)
    found = features.lookup(USER, ITEMS)
    if not user_known:
        values = zip(features.names["user"], features.defaults("user"), strict=True)
        found |= {name: [value] * len(ITEMS) for name, value in values}
    packed = PackedModel.load(packed_model)
    columns = {"device": ["tv"] * len(ITEMS), "price": [None] * len(ITEMS), **found}
    return packed.score({name: columns[name] for name in packed.schema.input_names})


class Redis:
    """A Redis of our own, which keeps what it holds when it is killed."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self.command += ["--appendonly", "yes", "--save", "", "--logfile", str(folder / "redis.log")]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as asking:
                asking.sendall(b"PING\r\n")
                if asking.recv(100).startswith(b"+PONG"):
                    return
            assert time.monotonic() < deadline, "Redis does not start"
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    started = Redis(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@pytest.fixture(scope="module")
def stored(redis, tiny_run, tiny_dataset, tiny_schema, tmp_path_factory):
    """A server whose store is a Redis behind a proxy."""
    folder = tmp_path_factory.mktemp("stored")
    with proxied("127.0.0.1", redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.own_port}/0"
        build_features(tiny_dataset, tiny_schema, 0, folder / "frame", folder / "store", url)
        options = ["--store-deadline-ms", str(DEADLINE_MS)]
        log = folder / "server.log"
        server = process.start(
            tiny_run.packed_model, folder / "store", log, outlive=False, options=options, seconds=600
        )
        yield server, proxy
        process.stop(server.pid)
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("fault", ["swallow", "slow", "refuse", "killed"])
def test_answers_go_on_from_defaults_while_the_store_is_gone(stored, redis, tiny_run, fault):
    server, proxy = stored
    troubles = {"swallow": Trouble(swallow=True), "slow": Trouble(delay_s=1.0), "refuse": Trouble(refuse=True)}
    known = expected(tiny_run.packed_model, tiny_run.feature_store)
    unknown = expected(tiny_run.packed_model, tiny_run.feature_store, user_known=False)
    assert np.abs(known - unknown).max() > 1e-4
    before = counted(server, "narrowcast_fallbacks_total")
    times = {}

    async def faulty():
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        times["fault"] = asyncio.get_running_loop().time() - started
        if fault == "killed":
            redis.kill()
        else:
            proxy.cause(troubles[fault])
        await asyncio.sleep(2.5)
        if fault == "killed":
            await asyncio.to_thread(redis.start)
        proxy.mend()
        times["mended"] = asyncio.get_running_loop().time() - started

    async def main():
        send = http(server)
        for _ in range(2):  # connections to the store, and items in memory
            await send(0)
        outcomes, _ = await asyncio.gather(offer(poisson(30, 8, seed=1), send), faulty())
        await send.close()
        return outcomes

    outcomes = run(main())
    assert not [outcome.error for outcome in outcomes if outcome.error]
    fallen = []
    for outcome in outcomes:
        probabilities, _, fallbacks = answered(outcome)
        if "user" in fallbacks:
            fallen.append(outcome)
        if not fallbacks:
            np.testing.assert_allclose(probabilities, known, atol=1e-6)
        elif fallbacks == {"user"}:
            np.testing.assert_allclose(probabilities, unknown, atol=1e-6)
    during = [o for o in outcomes if times["fault"] + 0.3 < o.scheduled_s < times["mended"] - 0.1]
    assert len(during) > 30
    assert all(outcome in fallen for outcome in during)
    latencies_ms = np.array([outcome.latency_s for outcome in during]) * 1e3
    assert np.median(latencies_ms) < DEADLINE_MS + 100
    assert latencies_ms.max() < DEADLINE_MS + 1000
    assert counted(server, "narrowcast_fallbacks_total") - before >= len(fallen)
    recovered = [outcome for outcome in outcomes if outcome.scheduled_s > times["mended"] + 2.5]
    assert len(recovered) > 20
    assert np.mean([outcome in fallen for outcome in recovered]) < 0.2  # a busy machine may miss a deadline by itself


def test_a_hanging_store_does_not_pile_up_threads(stored):
    server, proxy = stored

    def threads():
        return len(list(Path(f"/proc/{server.pid}/task").iterdir()))

    async def main():
        send = http(server)
        await send(0)
        usual = threads()
        proxy.cause(Trouble(swallow=True))
        outcomes = await offer(constant(60, 3), send)
        most = threads()
        proxy.mend()
        await send.close()
        return usual, most, outcomes

    usual, most, outcomes = run(main())
    assert not [outcome.error for outcome in outcomes if outcome.error]
    assert most < usual + 12
    deadline = time.monotonic() + 10
    while "fallbacks" in client.infer(server.url, server.name, ranking()).get("parameters", {}):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def models(tiny_run, tiny_schema, tmp_path_factory):
    """Two packed models of one schema, by name."""
    other = tmp_path_factory.mktemp("models") / "other"
    pack(tiny_run.full_model, tiny_run.encoded, tiny_run.frame, tiny_schema, other)
    return {"first": tiny_run.packed_model, "second": other}


@dataclasses.dataclass(frozen=True)
class Linked:
    """A server whose `--model` is a link."""

    server: process.Server
    link: Path
    announce: Path
    log: Path

    def point(self, model):
        """The link flipped in one step."""
        fresh = self.link.with_name("fresh")
        fresh.symlink_to(model)
        fresh.replace(self.link)

    def swap(self, model):
        self.point(model)
        process.swap(self.server.pid, self.announce, digest(model))


@pytest.fixture(scope="module")
def linked(models, tiny_run, tmp_path_factory):
    """The first model behind a link; the last test ends the server."""
    folder = tmp_path_factory.mktemp("linked")
    link, announce, log = folder / "model", folder / "server.json", folder / "server.log"
    link.symlink_to(models["first"])
    options = ["--linger-seconds", str(LINGER_SECONDS), "--store-deadline-ms", "10000"]
    server = process.start(
        link, tiny_run.feature_store, log, outlive=False, announce=announce, options=options, seconds=600
    )
    yield Linked(server, link, announce, log)
    process.stop(server.pid)
    assert "Traceback" not in log.read_text()


def test_no_request_fails_while_the_model_is_replaced(linked, models, tiny_run):
    server = linked.server
    scores = {digest(model): expected(model, tiny_run.feature_store) for model in models.values()}
    assert np.abs(np.subtract(*scores.values())).max() > 1e-3

    async def replace_twice():
        for name in ("second", "first"):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(linked.swap, models[name])
        await asyncio.sleep(0.5)

    async def under_load(send, rate, replacing):
        """Offers load, a second at a time, for as long as models are replaced."""
        outcomes = []
        while not replacing.done():
            outcomes += await offer(poisson(rate, 1, seed=len(outcomes)), send)
        await send.close()
        return outcomes

    async def main():
        replacing = asyncio.create_task(replace_twice())
        found = await asyncio.gather(
            under_load(http(server), 40, replacing), under_load(rpc(server), 20, replacing), replacing
        )
        return found[:2]

    by_http, by_rpc = run(main())
    assert not [outcome.error for outcome in (*by_http, *by_rpc) if outcome.error]
    answers = {"http": [answered(outcome)[:2] for outcome in by_http], "rpc": []}
    for outcome in by_rpc:
        body = outcome.answer.body
        answers["rpc"].append((np.array(body.outputs[0].contents.fp32_contents), body.model_version))
    for found in answers.values():
        for probabilities, version in found:  # wholly of the version that it names
            np.testing.assert_allclose(probabilities, scores[version], atol=1e-6)
        assert {version for _, version in found} == set(scores)
    assert counted(server, "narrowcast_swaps_total") == 2
    assert counted(server, "narrowcast_failed_swaps_total") == 0


def test_a_model_that_will_not_do_is_refused_under_load(linked, models, tmp_path):
    server = linked.server
    broken = tmp_path / "broken"
    shutil.copytree(models["second"], broken)
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")

    async def replace():
        await asyncio.sleep(0.3)
        with pytest.raises(NarrowcastError, match="is not the file that was packed"):
            await asyncio.to_thread(linked.swap, broken)

    async def main():
        send = http(server)
        outcomes, _ = await asyncio.gather(offer(poisson(40, 3, seed=2), send), replace())
        await send.close()
        return outcomes

    outcomes = run(main())
    assert not [outcome.error for outcome in outcomes if outcome.error]
    assert {answered(outcome)[1] for outcome in outcomes} == {digest(models["first"])}
    assert read_json(linked.announce)["model_md5"] == digest(models["first"])
    assert counted(server, "narrowcast_failed_swaps_total") == 1


def test_too_much_is_refused_in_words_and_passes(linked):
    async def main():
        send = http(linked.server, times=20)
        await send.open(350)  # so that none has been answered when the last arrives
        flood = await offer(np.zeros(350), send, timeout_s=60)
        calm = await offer(constant(5, 1), send)
        await send.close()
        return flood, calm

    flood, calm = run(main())
    assert {outcome.error for outcome in flood} == {"", "status 503"}
    refused = next(outcome.answer.body for outcome in flood if outcome.error)
    assert "try again" in json.loads(refused)["error"]
    assert not [outcome.error for outcome in calm if outcome.error]


def test_what_was_taken_before_the_end_is_answered(linked):
    """Over connections that are kept, over one a request, and over gRPC."""
    server = linked.server
    told = {}

    async def end():
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        os.kill(server.pid, signal.SIGTERM)
        told["s"] = asyncio.get_running_loop().time() - started
        await asyncio.sleep(LINGER_SECONDS / 2)
        told["ready"] = await asyncio.to_thread(client.is_ready, server.url, server.name)

    async def main():
        sends = http(server), http(server, close=True), rpc(server)
        loads = [offer(poisson(15, 5, seed=3 + i), send) for i, send in enumerate(sends)]
        *found, _ = await asyncio.gather(*loads, end())
        for send in sends:
            await send.close()
        return found

    for outcomes in run(main()):
        taken = [outcome for outcome in outcomes if outcome.sent_s < told["s"] + LINGER_SECONDS / 2]
        assert len(taken) > 15
        assert not [outcome.error for outcome in taken if outcome.error]
        late = {outcome.error for outcome in outcomes if outcome not in taken} - {""}
        assert late  # it did end
        assert all(
            error.startswith(("not connected", "connection ", "gRPC UNAVAILABLE", "gRPC CANCELLED")) for error in late
        ), late
    assert told["ready"] is False
    deadline = time.monotonic() + 15
    while process.is_running(server.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
