"""Ten thousand broken and odd requests, and what the interface's own description makes: never a server error."""

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httptools
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from load.http1 import HttpSender, request_bytes
from load.odd import BAD_STATUS, odd_request, odd_rpc
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from narrowcast.components.serve import client, process

SEED = 4
HTTP_REQUESTS = 9000
RPC_REQUESTS = 1000
SIDE_BY_SIDE = 6
SECONDS_TO_START = 600.0
SECONDS_TO_ANSWER = 20.0
CHECK_EVERY = 50
"""Requests of one client after which a good request must be answered rightly."""


@pytest.fixture(scope="module")
def server(tiny_run, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    running = process.start(tiny_run.packed_model, tiny_run.feature_store, log, outlive=False, seconds=SECONDS_TO_START)
    yield running
    process.stop(running.pid)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def sample(tiny_run):
    return json.loads((tiny_run.packed_model / "sample_request.json").read_text())


def bodies(sample):
    """Good requests: one with every input given, and one whose features are looked up."""
    ranking = [("user_id", ["3"]), ("item_id", ["1", "2", "0", "7"]), ("device", ["tv"])]
    looked_up = [{"name": n, "shape": [len(v)], "datatype": "BYTES", "data": v} for n, v in ranking]
    return sample["request"], {"inputs": looked_up}


class Answers:
    """The statuses of whatever comes back over one connection."""

    def __init__(self):
        self.statuses = []
        self.body = b""
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self):
        self.statuses.append(self.parser.get_status_code())

    def on_body(self, body):
        self.body += body


async def statuses(address, odd):
    """Statuses answered to an odd request until the connection closes; none where the server only closes it."""
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answers = Answers()
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(odd.wire)
            await writer.drain()
            while True:
                patience = SECONDS_TO_ANSWER if odd.framed else 0.1
                try:
                    data = await asyncio.wait_for(reader.read(1 << 16), patience)
                except TimeoutError:
                    if odd.framed:
                        raise AssertionError(f"no answer within {SECONDS_TO_ANSWER:.0f} s") from None
                    break  # the server waits for the rest, which never comes
                if not data:
                    break
                with contextlib.suppress(httptools.HttpParserError):
                    answers.parser.feed_data(data)
    finally:
        writer.transport.abort()
    assert b"Traceback" not in answers.body
    return answers.statuses


async def send_all(url, model, sample):
    """What went wrong, as (number, kind, what)."""
    address = urlsplit(url)
    good = bodies(sample)
    numbers = iter(range(HTTP_REQUESTS))
    wrong, seen = [], {}
    exact = json.dumps(sample["request"]).encode()
    request = request_bytes("POST", url, f"/v2/models/{model}/infer", exact, {"Content-Type": "application/json"})

    async def one_client():
        check = HttpSender(url, lambda index: request)
        for done, number in enumerate(numbers):
            odd = odd_request(SEED, number, good[number % 2], model)
            try:
                found = await statuses(address, odd)
                if any(status >= 500 for status in found) or (odd.framed and not found):
                    wrong.append((number, odd.kind, found or "no answer"))
                for status in found:
                    seen[odd.kind, status // 100] = seen.get((odd.kind, status // 100), 0) + 1
                if done % CHECK_EVERY == 0:
                    answer = await check(0)
                    assert answer.status == 200, answer
                    probabilities = client.probabilities(json.loads(answer.body))
                    np.testing.assert_allclose(probabilities, sample["expected"], atol=sample["tolerance"])
            except (AssertionError, OSError) as error:
                wrong.append((number, odd.kind, str(error)))
        await check.close()

    await asyncio.gather(*(one_client() for _ in range(SIDE_BY_SIDE)))
    return wrong, seen


@pytest.mark.slow
def test_nothing_sent_over_http_is_a_server_error(server, sample):
    held = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    wrong, seen = asyncio.run(send_all(server.url, server.name, sample))
    assert not wrong, f"{len(wrong)} of {HTTP_REQUESTS}, the first: {wrong[:5]}"
    for kind in ("tree", "tensors", "bytes", "binary"):  # the odd ones reach what they are meant for
        assert seen[kind, 4] > 100, seen
        assert seen[kind, 2] > 5, seen
    assert client.is_ready(server.url, server.name)
    assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < held + 50


def test_nothing_sent_over_grpc_is_a_server_error(server, sample):
    good = bodies(sample)
    seen, wrong = {}, []
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for number in range(RPC_REQUESTS):
            try:
                call(odd_rpc(SEED, number, good[number % 2], server.name), timeout=SECONDS_TO_ANSWER)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
                if code in BAD_STATUS:
                    wrong.append((number, code, error.details()))
            seen[code] = seen.get(code, 0) + 1
    assert not wrong, f"{len(wrong)} of {RPC_REQUESTS}, the first: {wrong[:5]}"
    assert seen["OK"] > 50, seen
    assert seen["INVALID_ARGUMENT"] > 50, seen
    answer = client.infer(server.url, server.name, sample["request"]["inputs"])
    np.testing.assert_allclose(client.probabilities(answer), sample["expected"], atol=sample["tolerance"])


def test_an_odd_request_is_named_by_its_seed_and_number(sample):
    good = bodies(sample)
    for number in range(200):
        again = [odd_request(SEED, number, good[0], "tiny") for _ in range(2)]
        assert again[0] == again[1]
        assert odd_rpc(SEED, number, good[0], "tiny") == odd_rpc(SEED, number, good[0], "tiny")
    assert len({odd_request(SEED, number, good[0], "tiny").wire for number in range(200)}) > 180


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_what_the_interface_describes_is_never_a_server_error(server, mode):
    """Schemathesis on the server's own OpenAPI description: every operation, by its rules and against them."""
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in api.get_all_operations()]
    assert {"POST", "GET"} <= {operation.method.upper() for operation in operations}
    for operation in operations:

        @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case):
            case.call_and_validate(base_url=server.url, checks=[not_a_server_error], timeout=SECONDS_TO_ANSWER)

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
            holds()
    assert client.is_ready(server.url, server.name)
