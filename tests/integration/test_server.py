"""One real server: what it answers, what it refuses and how it ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pandas as pd
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.serve import client, process
from narrowcast.components.serve.protocol import MAX_CANDIDATES, to_tensors
from narrowcast.components.serve.server import claim_port
from narrowcast.components.serve.versions import VersionConfig, load_version
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest

PATIENT = ("--store-deadline-ms", "20000")
"""On a busy machine no answer may come from defaults."""


@pytest.fixture(scope="module")
def server(tiny_run, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    running = process.start(tiny_run.packed_model, tiny_run.feature_store, log, outlive=False, options=PATIENT)
    yield running
    process.stop(running.pid)


def test_a_server_ends_with_its_caller_even_if_that_is_killed(tiny_run, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from narrowcast.components.serve import process
server = process.start(Path({str(tiny_run.packed_model)!r}), Path({str(tiny_run.feature_store)!r}),
                       Path({str(tmp_path / "log")!r}), outlive=False)
print(server.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        assert process.is_running(pid)
        caller.kill()
    deadline = time.monotonic() + 20
    while process.is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def post(server, body, path=None, headers=None):
    """Status and text of a raw POST."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = path or f"/v2/models/{server.name}/infer"
        connection.request("POST", path, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


def get(server, path):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def tensor(name, data, datatype="BYTES", shape=None):
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


def ranking(user="3", items=("1", "2", "0"), **others):
    tensors = [tensor("user_id", [user]), tensor("item_id", list(items)), tensor("device", ["tv"])]
    return [*tensors, *others.values()]


def test_sample_request_and_metadata(server, tiny_run, tiny_schema):
    sample = json.loads((tiny_run.packed_model / "sample_request.json").read_text())
    answer = client.infer(server.url, server.name, sample["request"]["inputs"])
    np.testing.assert_allclose(client.probabilities(answer), sample["expected"], atol=1e-6)
    assert answer["outputs"][0]["datatype"] == "FP32"
    assert answer["model_name"] == tiny_schema.name
    status, text = get(server, f"/v2/models/{server.name}")
    assert status == 200
    assert [entry["name"] for entry in json.loads(text)["inputs"]] == list(tiny_schema.input_names)
    assert client.is_ready(server.url, server.name)
    assert not client.is_ready(server.url, "another")


def test_looked_up_features_give_the_packed_models_scores(server, tiny_run):
    items = [str(i) for i in range(12)]
    answer = client.infer(server.url, server.name, ranking("5", items))
    found = OnlineFeatures.load(tiny_run.feature_store).lookup("5", items)
    given = {"user_id": ["5"] * 12, "item_id": items, "device": ["tv"] * 12, "price": [None] * 12}
    packed = PackedModel.load(tiny_run.packed_model)
    columns = {name: given.get(name, found.get(name)) for name in packed.schema.input_names}
    np.testing.assert_allclose(client.probabilities(answer), packed.score(columns), atol=1e-6)
    assert not answer.get("parameters")


def scores_as_bytes(server, tensors):
    """The FP32 bytes of a ranking that no default stood in for."""
    asked = {"inputs": tensors, "outputs": [{"name": "probability", "parameters": {"binary_data": True}}]}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/models/{server.name}/infer", json.dumps(asked))
        response = connection.getresponse()
        body = response.read()
    length = int(response.headers["Inference-Header-Content-Length"])
    assert "fallbacks" not in json.loads(body[:length]).get("parameters", {})
    return body[length:]


def test_redis_ranks_as_sqlite_does_to_the_bit(server, start_redis, tiny_run, tiny_dataset, tiny_schema, tmp_path):
    build_features(tiny_dataset, tiny_schema, 0, tmp_path / "frame", tmp_path / "store", start_redis().url)
    log = tmp_path / "server.log"
    other = process.start(tiny_run.packed_model, tmp_path / "store", log, outlive=False, options=PATIENT)
    try:
        requests = [ranking(user, [str(i) for i in range(42)]) for user in ("3", "5", "17", "nobody")]
        scores = [scores_as_bytes(other, request) for request in requests]
        assert scores == [scores_as_bytes(server, request) for request in requests]
        assert [len(found) for found in scores] == [4 * 42] * 4
        assert len(set(scores)) == 4  # users' features are in them
    finally:
        process.stop(other.pid)


def test_an_id_has_one_spelling(server):
    plain, spelled = (client.infer(server.url, server.name, ranking(u, i)) for u, i in (("3", ["1"]), ("3.0", ["1.0"])))
    assert client.probabilities(plain) == client.probabilities(spelled)
    assert not spelled.get("parameters")


def test_a_given_input_replaces_the_looked_up_one(server):
    plain = client.probabilities(client.infer(server.url, server.name, ranking()))
    older = client.infer(server.url, server.name, ranking(age=tensor("age", [12], "INT64")))
    empty = client.infer(server.url, server.name, ranking(history=tensor("history", ["[]"])))
    assert client.probabilities(older) != plain
    assert client.probabilities(empty) != plain


def test_unknown_ids_are_answered_and_named(server):
    answer = client.infer(server.url, server.name, ranking("nobody", ["1", "never", "nowhere", "never", ""]))
    probabilities = client.probabilities(answer)
    assert all(0 < p < 1 for p in probabilities)
    assert probabilities[1] == pytest.approx(probabilities[2], abs=1e-6)
    parameters = answer["parameters"]
    assert json.loads(parameters["unknown_user_id"]) == ["nobody"]
    assert json.loads(parameters["unknown_item_id"]) == ["never", "nowhere", ""]


def test_rows_of_the_frame_score_as_encoded(server, tiny_run, tiny_schema):
    rows = pd.read_parquet(tiny_run.frame / "frame.parquet").tail(50)
    columns = {name: rows[name].tolist() for name in tiny_schema.input_names}
    answer = client.infer(server.url, server.name, to_tensors(tiny_schema, columns))
    test = EncodedData(tiny_run.encoded).split("test")
    np.testing.assert_array_equal(test.row_id_B[-50:], rows["row_id"])
    expected = PackedModel.load(tiny_run.packed_model).batch_scores(test.inputs.take(slice(len(test) - 50, None)))
    np.testing.assert_allclose(client.probabilities(answer), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (tensor("price", [float("nan")], "FP64"), "price"),
        (tensor("price", [1.0, 2.0], "FP64"), "price"),
        (tensor("price", ["cheap"]), "price"),
        (tensor("age", [1e300], "FP64"), "age"),
        (tensor("tags", ["no list"]), "tags"),
        (tensor("city", ["\ud800"]), "city"),
        (tensor("colour", ["red"]), "colour"),
        (tensor("col\ud800our", ["red"]), None),
    ],
)
def test_bad_inputs_are_400_and_named(server, bad, name):
    status, text = post(server, {"inputs": ranking(bad=bad)})
    assert status == 400, text
    assert name is None or name in json.loads(text)["error"]


def test_missing_and_too_many_are_400(server):
    for left_out in ("user_id", "item_id", "device"):
        status, text = post(server, {"inputs": [t for t in ranking() if t["name"] != left_out]})
        assert status == 400
        assert f"missing input '{left_out}'" in json.loads(text)["error"]
    status, text = post(server, {"inputs": ranking(items=[str(i) for i in range(MAX_CANDIDATES + 1)])})
    assert status == 400
    assert "'item_id'" in text


def test_garbage_is_the_clients_error(server):
    infer = f"/v2/models/{server.name}/infer"
    good = {"inputs": ranking()}
    bodies = [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"1", b'{"inputs": 5}', b'{"inputs": [{}]}', b"[" * 100_000]
    bodies += [
        b'{"inputs": [], "x": NaN}',
        b'{"inputs": [{"name": "a", "shape": [NaN], "datatype": "FP32", "data": [NaN]}]}',
    ]
    bodies += [json.dumps({**good, "id": "\ud800"}).encode(), json.dumps({**good, "parameters": [1]}).encode()]
    headers = [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "x"},
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "7"},
        {"Content-Type": "application/cloudevents+json"},
        {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"},
    ]
    paths = [infer, f"/v1/models/{server.name}:predict", f"/v1/models/{server.name}:explain"]
    paths += [f"/v2/repository/models/{server.name}/{verb}" for verb in ("load", "unload")]
    for path in paths:
        for extra in headers:
            for body in bodies:
                status, text = post(server, body, path, extra)
                assert 400 <= status < 500, (path, extra, body[:60], status, text)
    for extra in headers:
        status, text = post(server, good, infer, extra)
        assert status < 500, (extra, status, text)
    assert post(server, good, "/v2/models/another/infer")[0] == 404
    assert post(server, good)[0] == 200


def test_binary_tensors_of_kserves_client(server):
    from kserve import InferInput, InferRequest

    tensors = [
        InferInput("user_id", [1], "BYTES"),
        InferInput("item_id", [2], "BYTES"),
        InferInput("device", [1], "BYTES"),
    ]
    for sent, values in zip(tensors, (["3"], ["1", "2"], ["tv"]), strict=True):
        sent.set_data_from_numpy(np.array(values, dtype=object))
    body, length = InferRequest(server.name, tensors).to_rest()
    extra = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
    status, text = post(server, body, headers=extra)
    assert status == 200, text
    plain = client.probabilities(client.infer(server.url, server.name, ranking(items=("1", "2"))))
    assert client.probabilities(json.loads(text)) == plain


def grpc_request(server, tensors, **others):
    """The same tensors as a ModelInferRequest."""
    inputs = []
    for sent in tensors:
        kind = {"BYTES": "bytes_contents", "FP64": "fp64_contents", "INT64": "int64_contents"}[sent["datatype"]]
        data = [value.encode() if isinstance(value, str) else value for value in sent["data"]]
        inputs.append({**{k: sent[k] for k in ("name", "shape", "datatype")}, "contents": {kind: data}})
    return pb.ModelInferRequest(**{"model_name": server.name, "inputs": inputs, **others})


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield GRPCInferenceServiceStub(channel)


def test_grpc_answers_as_rest_does(server, stub, tiny_run, tiny_schema):
    sample = json.loads((tiny_run.packed_model / "sample_request.json").read_text())["request"]["inputs"]
    for tensors in (sample, ranking("nobody", ["1", "never"])):
        rest = client.infer(server.url, server.name, tensors)
        answer = stub.ModelInfer(grpc_request(server, tensors, id="7"))
        scores = answer.outputs[0].contents.fp32_contents
        np.testing.assert_array_equal(np.array(scores, np.float32), np.array(client.probabilities(rest), np.float32))
        assert (answer.id, answer.model_name, answer.model_version) == ("7", server.name, digest(tiny_run.packed_model))
        assert {k: v.string_param for k, v in answer.parameters.items()} == rest.get("parameters", {})
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name=server.name)).ready
    described = stub.ModelMetadata(pb.ModelMetadataRequest(name=server.name))
    assert tuple(entry.name for entry in described.inputs) == tiny_schema.input_names
    assert list(described.versions) == [digest(tiny_run.packed_model)]


def test_raw_grpc_tensors_are_answered_raw(server, stub):
    raw = [b"\1\0\0\0" + b"3", b"\1\0\0\0" + b"1" + b"\1\0\0\0" + b"2", b"\2\0\0\0" + b"tv"]
    named = [{"name": n, "shape": [m], "datatype": "BYTES"} for n, m in (("user_id", 1), ("item_id", 2), ("device", 1))]
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name=server.name, inputs=named, raw_input_contents=raw))
    plain = client.probabilities(client.infer(server.url, server.name, ranking(items=("1", "2"))))
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), np.array(plain, np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        tensor("price", [float("nan")], "FP64"),
        tensor("price", [1.0, 2.0], "FP64"),
        tensor("price", ["cheap"]),
        tensor("age", [1e300], "FP64"),
        tensor("tags", ["no list"]),
        tensor("colour", ["red"]),
        tensor("device", ["tv"]),
    ],
)
def test_grpc_refuses_with_rests_sentences(server, stub, bad):
    status, text = post(server, {"inputs": ranking(bad=bad)})
    assert status == 400
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(grpc_request(server, ranking(bad=bad)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == json.loads(text)["error"]


def test_grpc_refuses_what_only_it_can_be_sent(server, stub):
    def refusal(call, request):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        return caught.value.code().name, caught.value.details()

    both = grpc_request(server, ranking(), raw_input_contents=[b"", b"", b""])
    assert refusal(stub.ModelInfer, both)[0] == "INVALID_ARGUMENT"
    short = grpc_request(server, ranking(), raw_input_contents=[b""])
    assert refusal(stub.ModelInfer, short) == (
        "INVALID_ARGUMENT",
        "the request has 3 inputs but 1 raw contents: send one each",
    )
    half = {"name": "price", "shape": [1], "datatype": "FP16", "contents": {"fp32_contents": [1.0]}}
    assert (
        "only raw contents" in refusal(stub.ModelInfer, pb.ModelInferRequest(model_name=server.name, inputs=[half]))[1]
    )
    wrong = {"name": "device", "shape": [1], "datatype": "BYTES", "contents": {"bytes_contents": [b"\xff"]}}
    assert "Unicode" in refusal(stub.ModelInfer, pb.ModelInferRequest(model_name=server.name, inputs=[wrong]))[1]
    asked = pb.ModelInferRequest(model_name=server.name, outputs=[{"name": "logit"}])
    assert "no output 'logit'" in refusal(stub.ModelInfer, asked)[1]
    assert refusal(stub.ModelInfer, pb.ModelInferRequest(model_name="x"))[0] == "NOT_FOUND"
    assert refusal(stub.ModelInfer, grpc_request(server, ranking(), model_version="x"))[0] == "NOT_FOUND"
    assert refusal(stub.ModelReady, pb.ModelReadyRequest(name="x"))[0] == "NOT_FOUND"
    assert refusal(stub.ModelMetadata, pb.ModelMetadataRequest(name="x"))[0] == "NOT_FOUND"
    assert refusal(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest())[0] == "UNIMPLEMENTED"
    long = grpc_request(server, [tensor("user_id", ["3" * (17 << 20)])])
    assert refusal(stub.ModelInfer, long)[0] == "RESOURCE_EXHAUSTED"


def test_a_version_is_named_and_may_be_asked_for(server, tiny_run):
    md5 = digest(tiny_run.packed_model)
    model = f"/v2/models/{server.name}"
    assert json.loads(get(server, model)[1])["versions"] == [md5]
    assert json.loads(get(server, f"{model}/versions/{md5}")[1])["versions"] == [md5]
    assert get(server, f"{model}/versions/{md5}/ready")[0] == 200
    status, text = post(server, {"inputs": ranking()}, f"{model}/versions/{md5}/infer")
    assert status == 200
    assert json.loads(text)["model_version"] == md5
    for path in (f"{model}/versions/1", f"{model}/versions/1/ready"):
        assert get(server, path)[0] == 404
    assert post(server, {"inputs": ranking()}, f"{model}/versions/1/infer")[0] == 404


def test_request_id_is_the_bodys_or_the_headers(server):
    answer = json.loads(post(server, {"inputs": ranking(), "id": "mine"})[1])
    assert answer["id"] == "mine"
    answer = json.loads(post(server, {"inputs": ranking()}, headers={"X-Request-Id": "traced"})[1])
    assert answer["id"] == "traced"


def test_bodies_over_the_limit_are_413(server):
    status, text = post(server, b" " * ((16 << 20) + 1))
    assert status == 413
    assert "over the limit" in json.loads(text)["error"]
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        path = f"/v2/models/{server.name}/infer"
        connection.request("POST", path, iter([b" " * (1 << 20)] * 17), encode_chunked=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            assert connection.getresponse().status == 413
    body = json.dumps({"inputs": ranking()}).encode()
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, iter([body[:20], body[20:]]), encode_chunked=True)
        assert connection.getresponse().status == 200


def test_large_and_small_requests_at_once_get_their_own_answers(server):
    """Many at once, so that they are scored together; one is so long that it is read in a thread."""
    asked = [(str(user), [str((user + i) % 40) for i in range(1 + 7 * user)]) for user in range(20)]
    alone = [client.probabilities(client.infer(server.url, server.name, ranking(*request))) for request in asked]
    long = ranking("3", ["x" * 40 + str(i) for i in range(9000)])
    with ThreadPoolExecutor(10) as pool:
        slow = pool.submit(client.infer, server.url, server.name, long)
        together = pool.map(lambda request: client.infer(server.url, server.name, ranking(*request)), asked * 5)
        for expected, answer in zip(alone * 5, together, strict=True):
            np.testing.assert_allclose(client.probabilities(answer), expected, atol=1e-6)
        assert len(set(client.probabilities(slow.result()))) == 1, "items the model never saw score alike"


def test_metrics_count_what_happened(server, stub):
    model = f'model_name="{server.name}"'

    def values():
        lines = [line for line in get(server, "/metrics")[1].splitlines() if not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = values()
    client.infer(server.url, server.name, ranking(items=("1", "never")))
    client.infer(server.url, server.name, ranking(items=("1", "never")))
    post(server, {"inputs": []})
    stub.ModelInfer(grpc_request(server, ranking(items=("1",))))
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(grpc_request(server, []))
    after = values()
    for name, risen in {
        "narrowcast_candidates_total{%s}": 5,
        "narrowcast_probability_count{%s}": 5,
        'narrowcast_probability_bucket{le="1.0",%s}': 5,
        'narrowcast_probability_bucket{le="0.001",%s}': 0,
        'narrowcast_ids_total{key="item_id",%s}': 5,
        'narrowcast_ids_total{key="user_id",%s}': 3,
        'narrowcast_unknown_ids_total{key="item_id",%s}': 2,
        'narrowcast_unknown_ids_total{key="user_id",%s}': 0,
        'narrowcast_requests_total{%s,protocol="rest",status="200"}': 2,
        'narrowcast_requests_total{%s,protocol="rest",status="400"}': 1,
        'narrowcast_requests_total{%s,protocol="grpc",status="OK"}': 1,
        'narrowcast_requests_total{%s,protocol="grpc",status="INVALID_ARGUMENT"}': 1,
        'narrowcast_stage_seconds_count{%s,stage="parse"}': 3,
        'narrowcast_stage_seconds_count{%s,stage="lookup"}': 3,
        'narrowcast_stage_seconds_count{%s,stage="encode"}': 3,
        'narrowcast_stage_seconds_count{%s,stage="queue"}': 3,
        'narrowcast_stage_seconds_count{%s,stage="score"}': 3,
        'narrowcast_stage_seconds_count{%s,stage="respond"}': 3,
        "narrowcast_batch_requests_count{%s}": 3,
        "narrowcast_request_candidates_sum{%s}": 5,
        "request_predict_seconds_count{%s}": 3,
    }.items():
        assert after[name % model] - before.get(name % model, 0) == risen, name
    assert after[f'narrowcast_model_info{{{model},version="{server.model_md5}"}}'] == 1
    assert after[f'narrowcast_requests_in_flight{{{model},version="{server.model_md5}"}}'] == 0
    hits, misses = (
        f'narrowcast_history_cache_{kind}_total{{{model},version="{server.model_md5}"}}' for kind in ("hits", "misses")
    )
    assert after[hits] + after[misses] - before[hits] - before[misses] == 3
    assert after[hits] - before[hits] >= 2, "one user's history is encoded once"


def command(tiny_run, *others):
    return [sys.executable, "-m", process.SERVER, "--model", str(tiny_run.packed_model), *others]


def test_port_in_use_is_one_sentence_before_loading(server, tiny_run):
    port = urlsplit(server.url).port
    asked = command(tiny_run, "--store", str(tiny_run.feature_store), "--port", str(port))
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{port} (")
    assert "Traceback" not in ended.stderr


def test_bad_addresses_and_folders_are_sentences(tiny_run, tmp_path):
    with pytest.raises(NarrowcastError, match=r"cannot listen on 127\.0\.0\.1:70000"):
        claim_port("127.0.0.1", 70000)
    with pytest.raises(NarrowcastError, match=r"cannot listen on no\.such\.host"):
        claim_port("no.such.host.invalid", 0)
    with pytest.raises(NarrowcastError, match="holds no packed model"):
        load_version(tmp_path, tiny_run.feature_store, VersionConfig())
    with pytest.raises(NarrowcastError):
        load_version(tiny_run.packed_model, tmp_path, VersionConfig())


def test_binds_loopback_only(server):
    port = urlsplit(server.url).port
    with socket.socket() as other, contextlib.suppress(OSError):
        other.bind(("127.0.0.2", port))  # free unless the server took every address
        return
    pytest.fail("the server listens beyond 127.0.0.1")


def test_sigterm_answers_what_runs_and_ends_with_status_0(tiny_run, tmp_path: Path):
    announce = tmp_path / "server.json"
    asked = command(tiny_run, "--store", str(tiny_run.feature_store), "--port", "0", "--announce", str(announce))
    running = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not announce.is_file() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        told = json.loads(announce.read_text())
        assert told["pid"] == running.pid
        kept = http.client.HTTPConnection(urlsplit(told["url"]).netloc, timeout=10)
        kept.request("GET", "/v2/health/ready")
        assert kept.getresponse().read()
        started = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)  # the open connection must not hold the server
        _, errors = running.communicate(timeout=20)
        assert running.returncode == 0, errors
        assert time.monotonic() - started < 4
        assert "Traceback" not in errors
    finally:
        running.kill()
        running.wait()
