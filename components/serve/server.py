"""The predictor: a packed model and a feature store behind the Open Inference Protocol v2 (REST), on KServe's server.

python -m narrowcast.components.serve.server --model DIR --store DIR --port 8080
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kserve
import numpy as np
import pyarrow as pa
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.columns import to_text
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.serve.process import STAY
from narrowcast.components.serve.protocol import RequestError, parse, signature
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json

SECONDS_TO_STOP = 5
"""Requests still running this long after SIGTERM are cut off."""
MAX_BODY_BYTES = 64 << 20

STAGE_SECONDS = Histogram(
    "narrowcast_stage_seconds",
    "Seconds of one request in a stage: lookup (feature store), encode, score",
    ["model_name", "stage"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
CANDIDATES = Counter("narrowcast_candidates", "Candidates scored", ["model_name"])
UNKNOWN_IDS = Counter("narrowcast_unknown_ids", "User and item keys that the model never saw", ["model_name", "key"])
CLIENT_ERRORS = Counter("narrowcast_client_errors", "Requests refused with status 400")


def _spelled(ids: list[str]) -> list[str]:
    """Ids as the feature store has them: "1.0" is "1"."""
    return [text or "" for text in to_text(pa.array(ids, pa.string())).to_pylist()]


class Predictor(kserve.Model):
    """Scores candidates: given inputs from the request, the others from the feature store."""

    def __init__(self, name: str, packed: PackedModel, store: OnlineFeatures) -> None:
        super().__init__(name)
        self.packed = packed
        self.store = store
        self.schema = packed.schema

    def get_input_types(self) -> list[dict[str, Any]]:
        return signature(self.schema)

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "probability", "datatype": "FP32", "shape": [-1]}]

    def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Answer one v2 request; `parameters` of the response name the keys that the model never saw.

        Raises:
            RequestError: for a request that cannot be scored.
        """
        if not isinstance(payload, InferRequest):
            raise RequestError(f"only the v2 protocol is served: POST to /v2/models/{self.name}/infer")
        identity = str(uuid.uuid4()) if payload.id is None else payload.id
        if not isinstance(identity, str) or not identity.isprintable():
            raise RequestError("the request's id is not printable text: send a plain one or none")
        probability_M, unknown = self.score([tensor.to_dict() for tensor in payload.inputs])
        output = InferOutput("probability", [len(probability_M)], "FP32", data=probability_M.tolist())
        parameters = {f"unknown_{key}": json.dumps(ids) for key, ids in unknown.items() if ids}
        return InferResponse(identity, self.name, [output], parameters=parameters or None)

    def explain(self, payload: Any, headers: dict[str, str] | None = None) -> InferResponse:
        raise RequestError(f"no explanations are served: POST to /v2/models/{self.name}/infer")

    def score(self, tensors: list[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, list[str]]]:
        """Probabilities (float32, M) of a request's tensors, and the unknown ids by key name."""
        request = parse(self.schema, tensors)
        columns: dict[str, Any] = dict(request.columns)
        with self._timed("lookup"):
            if missing := request.to_look_up(self.schema):
                user, item = self._keys()
                (user_id,) = _spelled(columns[user][:1])
                found = self.store.lookup(user_id, _spelled(columns[item]))
                columns |= {name: found[name] for name in missing}
        with self._timed("encode"):
            try:
                batch = self.packed.encoder.transform(columns)
            except NarrowcastError as error:
                raise RequestError(str(error)) from None
        with self._timed("score"):
            probability_M = self.packed.batch_scores(batch)
        CANDIDATES.labels(self.name).inc(request.num_candidates)
        unknown = {}
        for key in self._keys():
            ids_M = batch.ids_BF[:, self.packed.encoder.layout.categorical.index(key)]
            unknown[key] = list(dict.fromkeys(columns[key][row] for row in np.flatnonzero(ids_M == 0)))
            UNKNOWN_IDS.labels(self.name, key).inc(len(unknown[key]))
        return probability_M, unknown

    def check_sample(self, directory: Path) -> None:
        """Answer the packed sample request.

        Raises:
            NarrowcastError: where an answer is further from the expected probability than the sample tolerates.
        """
        sample = read_json(directory / "sample_request.json")
        try:
            scored_M, _ = self.score(sample["request"]["inputs"])
        except RequestError as error:
            raise NarrowcastError(
                f"{directory} does not answer its own sample request ({error}): pack it again"
            ) from None
        difference = float(np.abs(scored_M - np.asarray(sample["expected"], dtype=np.float32)).max())
        if not difference <= sample["tolerance"]:
            raise NarrowcastError(
                f"{directory} answers its own sample request {difference:.3g} away from the expected probabilities, "
                f"where {sample['tolerance']:g} is allowed: pack it again"
            )

    def _keys(self) -> list[str]:
        """The user and the item key, where the schema has them."""
        return [key for key in (self.schema.user, self.schema.item) if key]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        STAGE_SECONDS.labels(self.name, stage).observe(time.perf_counter() - started)


class _StrictDataPlane(DataPlane):
    """A body that cannot be decoded is the client's mistake, whatever KServe's decoder raises."""

    def decode(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().decode(*arguments, **options)
        except Exception as error:
            raise RequestError(f"the request cannot be decoded ({error}): send a v2 request as JSON") from None


class _FixedRepository(ModelRepositoryExtension):
    """One model for the server's lifetime: a client can neither load nor unload."""

    async def load(self, model_name: str) -> None:
        raise RequestError("this server's model is fixed: deploy another one to replace it")

    async def unload(self, model_name: str) -> None:
        raise RequestError("this server's model is fixed: stop the endpoint to take it down")


class _BodyLimit:
    """Refuses a body over `MAX_BODY_BYTES`, or of unstated length, before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
            if not length.isdecimal():
                await _refusal(411, "the request states no Content-Length: send one")(scope, receive, send)
                return
            if int(length) > MAX_BODY_BYTES:
                text = f"the request has {length} bytes, over the limit of {MAX_BODY_BYTES}: send it in parts"
                await _refusal(413, text)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _refusal(status: int, sentence: str) -> JSONResponse:
    CLIENT_ERRORS.inc()
    return JSONResponse({"error": sentence.encode("utf-8", "replace").decode()}, status_code=status)


async def _refuse_invalid(_: HttpRequest, error: Exception) -> JSONResponse:
    return _refusal(400, str(error))


async def _refuse_malformed(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest")) or "body"
    return _refusal(400, f"the request is no v2 inference request ({place}: {first['msg']})")


def load_predictor(model: Path, store: Path, name: str | None = None) -> Predictor:
    """A predictor that has answered its sample request. Raises NarrowcastError where model or store will not do."""
    if not (model / "manifest.json").is_file():
        raise NarrowcastError(f"{model} holds no packed model: give the folder that the compact step wrote")
    packed = PackedModel.load(model)
    features = OnlineFeatures.load(store)
    if features.schema.hash != packed.schema.hash:
        raise NarrowcastError(
            f"the feature store {store} was built by another schema than the model {model} was trained by: give the "
            "store of the model's own run"
        )
    predictor = Predictor(name or packed.schema.name, packed, features)
    predictor.check_sample(model)
    predictor.ready = True
    return predictor


def claim_port(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises NarrowcastError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        claimed = socket.socket(family, socket.SOCK_STREAM)
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind((host, port))
    except (OSError, OverflowError) as error:
        raise _port_error(host, port, error) from None
    return claimed


def _port_error(host: str, port: int, error: Exception) -> NarrowcastError:
    reason = getattr(error, "strerror", None) or str(error)
    return NarrowcastError(f"cannot listen on {host}:{port} ({reason}): free the port or give another with --port")


def serve(predictor: Predictor, claimed: socket.socket, announce: Path | None = None) -> None:
    """Answer requests on a claimed socket until SIGTERM or SIGINT.

    `announce` is written once connections are taken: `{"name", "url", "pid"}`.
    """
    host, port = claimed.getsockname()[:2]
    server = kserve.ModelServer(http_port=port, enable_grpc=False)
    server.register_model(predictor)
    rest = RESTServer(
        FASTAPI_APP_IMPORT_STRING,
        _StrictDataPlane(server.registered_models),
        _FixedRepository(server.registered_models),
        port,
        grace_period=SECONDS_TO_STOP,
    )
    app.add_middleware(_BodyLimit)
    app.add_exception_handler(RequestError, _refuse_invalid)
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    for name in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn stops on its own, then raises the signal again for us
    try:
        claimed.listen(2048)
    except OSError as error:
        raise _port_error(host, port, error) from None
    if announce:
        write_json(announce, {"name": predictor.name, "url": f"http://{host}:{port}", "pid": os.getpid()})
    rest.run(sockets=[claimed])


def end_with_caller() -> None:
    """Wait until standard input closes, then end this process; return where the caller tells it to stay."""
    if os.read(sys.stdin.fileno(), len(STAY)) == STAY:
        return
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_STOP)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="narrowcast.components.serve.server", description="Serve a packed model.")
    parser.add_argument("--model", type=Path, required=True, help="packed model")
    parser.add_argument("--store", type=Path, required=True, help="feature store")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free port")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers other machines too")
    parser.add_argument("--name", help="model name in the address; the schema's name if left out")
    parser.add_argument("--announce", type=Path, help="file to write the address to once requests are answered")
    parser.add_argument("--tied", action="store_true", help="end when standard input closes, unless told to stay")
    options = parser.parse_args(arguments)
    if options.tied:
        threading.Thread(target=end_with_caller, daemon=True).start()
    try:
        claimed = claim_port(options.host, options.port)
        serve(load_predictor(options.model, options.store, options.name), claimed, options.announce)
    except NarrowcastError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
