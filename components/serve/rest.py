"""The v2 protocol over HTTP: inference requests here, the rest (health, metadata, metrics) by KServe's endpoints.

Bodies are JSON, or JSON followed by binary tensors (`Inference-Header-Content-Length` says where they begin).
"""

import json
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.model_repository import ModelRepository
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from narrowcast import __version__
from narrowcast.components.serve.logs import event
from narrowcast.components.serve.predictor import Answer, Asked, Predictor
from narrowcast.components.serve.protocol import RequestError, TooLargeError

MAX_BODY_BYTES = 16 << 20
HEADER_LENGTH = "inference-header-content-length"
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"
FAILURE = "the server failed to answer, through no fault of the request: its log says why under this request's id"


class ClientGoneError(Exception):
    """The connection was closed before the request was read."""


class Front:
    """ASGI application: answers inference requests, and passes other requests on to `rest`, bodies bounded alike.

    While `closing` every answer asks the client to open another connection, elsewhere.
    """

    def __init__(self, predictor: Predictor, rest: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.predictor = predictor
        self.rest = rest
        self.max_body_bytes = max_body_bytes
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        request_id = _header(scope, b"x-request-id") or str(uuid.uuid4())
        try:
            parts = scope["path"].strip("/").split("/")
            if parts[:2] == ["v2", "models"] and len(parts) > 2:
                parts = self._without_version(parts)
                scope["path"] = "/" + "/".join(parts)
            if scope["method"] == "POST" and len(parts) == 4 and parts[3] == "infer" and parts[:2] == ["v2", "models"]:
                await self._infer(parts[2], request_id, scope, receive, send)
            elif scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                body = await self._body(scope, receive)
                await self.rest(scope, _once(body, receive), send)
            else:
                await self.rest(scope, receive, send)
        except ClientGoneError:
            return
        except RequestError as error:
            await self._refuse(error, request_id, send)

    def _without_version(self, parts: list[str]) -> list[str]:
        """The path's parts less `versions/<version>`, which must be the one served."""
        if len(parts) > 4 and parts[3] == "versions":
            self.predictor.check_name(parts[2], parts[4])
            return parts[:3] + parts[5:]
        return parts

    async def _infer(self, name: str, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        self.predictor.check_name(name)
        self.predictor.check_room()
        body = await self._body(scope, receive)
        header_length = _header(scope, HEADER_LENGTH.encode())

        def decode() -> Asked:
            return read_request(body, header_length, request_id)

        def respond(asked: Asked, answer: Answer) -> tuple[bytes, int | None]:
            return write_answer(name, asked, answer)

        try:
            content, json_length = await self.predictor.answer(decode, respond, num_bytes=len(body))
        except RequestError:
            raise
        except Exception as error:
            event("request failed", level=logging.ERROR, failure=error, request_id=request_id)
            await self._send(send, 500, orjson.dumps({"error": FAILURE}), request_id)
            return
        await self._send(send, 200, content, request_id, json_length)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises TooLargeError as soon as it is known to be over the limit."""
        stated = _header(scope, b"content-length") or "0"
        self._check_length(int(stated) if stated.isdecimal() and len(stated) < 20 else self.max_body_bytes + 1)
        chunks, length, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunks.append(message.get("body", b""))
            length += len(chunks[-1])
            self._check_length(length)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check_length(self, length: int) -> None:
        if length > self.max_body_bytes:
            raise TooLargeError(f"the request is over the limit of {self.max_body_bytes} bytes: send it in parts")

    async def _refuse(self, error: RequestError, request_id: str, send: Send) -> None:
        sentence = str(error).encode("utf-8", "replace").decode()
        await self._send(send, error.status, orjson.dumps({"error": sentence}), request_id)

    async def _send(
        self, send: Send, status: int, content: bytes, request_id: str, json_length: int | None = None
    ) -> None:
        self.predictor.metrics.answered("rest", status)
        headers = [
            (b"content-type", (JSON_TYPE if json_length is None else BINARY_TYPE).encode()),
            (b"content-length", str(len(content)).encode()),
            (b"x-request-id", request_id.encode("latin-1", "replace")),
        ]
        if json_length is not None:
            headers.append((HEADER_LENGTH.encode(), str(json_length).encode()))
        if status == 503:
            headers.append((b"retry-after", b"1"))
        if self.closing:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def read_request(body: bytes, header_length: str | None, request_id: str) -> Asked:
    """A v2 inference request. Raises RequestError where it is none."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 20 and int(header_length) <= len(body)):
            raise RequestError(
                f"{HEADER_LENGTH} is '{header_length}' for a body of {len(body)} bytes: send the length of its JSON"
            )
        length = int(header_length)
    message = _mapping("request", _json(body[:length]))
    binary = memoryview(body)[length:]
    inputs = message.get("inputs")
    if not isinstance(inputs, list):
        raise RequestError("the request is no v2 inference request (inputs: a list is required)")
    tensors = []
    for i, entry in enumerate(inputs):
        tensor, binary = _tensor(f"inputs.{i}", entry, binary)
        tensors.append(tensor)
    if len(binary):
        raise RequestError(
            f"{len(binary)} bytes follow the last input: state each binary input's length as its parameter "
            "binary_data_size"
        )
    identity = message.get("id")
    if identity is not None and not (isinstance(identity, str) and identity.isprintable()):
        raise RequestError("the request's id is not printable text: send a plain one or none")
    return Asked(id=identity or request_id, tensors=tensors, binary=_wants_binary(message))


def write_answer(name: str, asked: Asked, answer: Answer) -> tuple[bytes, int | None]:
    """The body, and where its data are binary the length of its JSON."""
    data = np.ascontiguousarray(answer.probability_M)
    output: dict[str, Any] = {"name": "probability", "shape": [len(data)], "datatype": "FP32"}
    message: dict[str, Any] = {
        "model_name": name,
        "model_version": answer.version,
        "id": asked.id,
        "outputs": [output],
    }
    if answer.parameters:
        message["parameters"] = answer.parameters
    if not asked.binary:
        output["data"] = data
        return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY), None
    output["parameters"] = {"binary_data_size": data.nbytes}
    header = orjson.dumps(message)
    return header + data.astype("<f4", copy=False).tobytes(), len(header)


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        reason = str(error)
    try:
        return json.loads(text)  # takes NaN, infinity and half surrogate pairs, which are then refused by input's name
    except (ValueError, RecursionError):
        raise RequestError(f"the request is not valid JSON ({reason}): send a v2 inference request") from None


def _tensor(where: str, entry: Any, binary: memoryview) -> tuple[dict[str, Any], memoryview]:
    """One input checked for its form, and what is left of the binary part."""
    entry = _mapping(where, entry)
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        wrong = "datatype" if isinstance(name, str) else "name"
        raise RequestError(f"the request is no v2 inference request ({where}.{wrong}: text is required)")
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int}:
        raise RequestError(f"the request is no v2 inference request ({where}.shape: a list of numbers is required)")
    size = _mapping(f"{where}.parameters", entry.get("parameters") or {}).get("binary_data_size")
    if size is None:
        return {"name": name, "datatype": datatype, "shape": shape, "data": entry.get("data")}, binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise RequestError(
            f"input '{name}' states a binary_data_size of {size!r} where {len(binary)} bytes are left: send as many"
        )
    return {"name": name, "datatype": datatype, "shape": shape, "data": bytes(binary[:size])}, binary[size:]


def _wants_binary(message: Mapping[str, Any]) -> bool:
    wanted = _mapping("parameters", message.get("parameters") or {}).get("binary_data_output")
    outputs = message.get("outputs") or []
    if not isinstance(outputs, list):
        raise RequestError("the request is no v2 inference request (outputs: a list is required)")
    for i, entry in enumerate(outputs):
        output = _mapping(f"outputs.{i}", entry)
        if output.get("name") != "probability":
            raise RequestError(f"the model has no output '{output.get('name')}': ask for 'probability'")
        wanted = _mapping(f"outputs.{i}.parameters", output.get("parameters") or {}).get("binary_data", wanted)
    return wanted is True


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"the request is no v2 inference request ({where}: a mapping is required)")
    return value


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def _once(body: bytes, receive: Receive) -> Receive:
    """A body already read, to be received again."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class ServerDataPlane(DataPlane):
    """What KServe's endpoints ask: the predictor's readiness, its version, and that its scorer lives."""

    def __init__(self, predictor: Predictor) -> None:
        models = ModelRepository()
        models.update(predictor)
        super().__init__(models)
        self.predictor = predictor

    async def live(self) -> dict[str, str]:
        return {"status": "alive" if self.predictor.batcher.is_alive() else "dead"}

    async def ready(self) -> bool:
        return self.predictor.ready

    def metadata(self) -> dict[str, Any]:
        return {"name": "narrowcast", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        self.predictor.check_name(model_name)
        described = await super().model_metadata(model_name)
        with self.predictor.versions.held() as version:
            return {**described, "platform": "narrowcast", "versions": [version.md5]}

    def decode(self, *arguments: Any, **options: Any) -> Any:
        """A body that cannot be decoded is the client's mistake, whatever KServe's decoder raises."""
        try:
            return super().decode(*arguments, **options)
        except Exception as error:
            raise RequestError(f"the request cannot be decoded ({error}): send a v2 request as JSON") from None


class _FixedRepository(ModelRepositoryExtension):
    """The model is the operator's to replace: a client can neither load nor unload."""

    async def load(self, model_name: str) -> None:
        raise RequestError("this server's model is the operator's to choose: deploy another one to replace it")

    async def unload(self, model_name: str) -> None:
        raise RequestError("this server's model is the operator's to choose: stop the endpoint to take it down")


def kserve_app(data_plane: ServerDataPlane) -> ASGIApp:
    """KServe's endpoints, with our sentences for a client's mistakes."""
    RESTServer("", data_plane, _FixedRepository(data_plane.model_registry), 0).create_application()
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    app.add_exception_handler(NotImplementedError, _refuse_unsupported)
    return app


async def _refuse(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return JSONResponse({"error": str(error).encode("utf-8", "replace").decode()}, status_code=error.status)


async def _refuse_unsupported(_: HttpRequest, error: Exception) -> JSONResponse:
    """What KServe's endpoints describe and do not do, a version as a query parameter: no server error."""
    return JSONResponse({"error": f"{error} Ask for /v2/models/NAME/versions/VERSION"}, status_code=400)


async def _refuse_malformed(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest")) or "body"
    sentence = f"the request is no v2 inference request ({place}: {first['msg']})"
    return JSONResponse({"error": sentence.encode("utf-8", "replace").decode()}, status_code=400)
