"""The v2 protocol over gRPC: the same answers and refusals as over HTTP."""

import logging
import uuid
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from narrowcast import __version__
from narrowcast.components.serve.logs import event
from narrowcast.components.serve.predictor import Answer, Asked, Predictor
from narrowcast.components.serve.protocol import RequestError, decoded
from narrowcast.components.serve.rest import FAILURE
from narrowcast.errors import NarrowcastError

CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where a tensor's values are by its datatype, unless they are raw."""


class Servicer(GRPCInferenceServiceServicer):
    """Answers from the predictor. Loading and unloading stay unimplemented: the model is the operator's to replace."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    async def ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=self.predictor.batcher.is_alive())

    async def ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self.predictor.ready)

    async def ServerMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="narrowcast", version=__version__)

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        try:
            self.predictor.check_name(request.name, request.version)
        except RequestError as error:
            await self._refuse(context, error)
        return pb.ModelReadyResponse(ready=self.predictor.ready)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        try:
            self.predictor.check_name(request.name, request.version)
            with self.predictor.versions.held() as version:
                return pb.ModelMetadataResponse(
                    name=request.name,
                    versions=[version.md5],
                    platform="narrowcast",
                    inputs=self.predictor.get_input_types(),
                    outputs=self.predictor.get_output_types(),
                )
        except RequestError as error:
            await self._refuse(context, error)

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        request_id = request.id or str(uuid.uuid4())
        try:
            self.predictor.check_name(request.model_name, request.model_version)
            response = await self.predictor.answer(
                lambda: read_request(request, request_id),
                lambda asked, answer: write_answer(request.model_name, asked, answer),
                num_bytes=request.ByteSize(),
            )
        except RequestError as error:
            await self._refuse(context, error)
        except Exception as error:
            event("request failed", level=logging.ERROR, failure=error, request_id=request_id)
            self.predictor.metrics.answered("grpc", "INTERNAL")
            await context.abort(grpc.StatusCode.INTERNAL, FAILURE)
        self.predictor.metrics.answered("grpc", "OK")
        return response

    async def _refuse(self, context: grpc.aio.ServicerContext, error: RequestError) -> NoReturn:
        self.predictor.metrics.answered("grpc", error.code)
        await context.abort(grpc.StatusCode[error.code], str(error).encode("utf-8", "replace").decode())
        raise AssertionError  # abort raises


class Parsing(grpc.aio.ServerInterceptor):
    """A message that cannot be parsed is the client's mistake; gRPC alone would answer UNKNOWN, as for the server's."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None

        async def call(message: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                request = handler.request_deserializer(message)
            except DecodeError as error:
                self.predictor.metrics.answered("grpc", "INVALID_ARGUMENT")
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be parsed ({error}): send the v2 protocol's"
                )
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)


def read_request(request: Any, request_id: str) -> Asked:
    """A ModelInferRequest's tensors. Raises RequestError where it contradicts itself."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(f"the request has {len(request.inputs)} inputs but {len(raw)} raw contents: send one each")
    for output in request.outputs:
        if output.name != "probability":
            raise RequestError(f"the model has no output '{output.name}': ask for 'probability'")
    tensors = []
    for i, tensor in enumerate(request.inputs):
        if raw and tensor.HasField("contents"):
            raise RequestError(f"input '{tensor.name}' has contents and raw contents: send one of them")
        data = raw[i] if raw else _contents(tensor)
        tensors.append({"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data})
    return Asked(id=request_id, tensors=tensors, binary=bool(raw))


def write_answer(name: str, asked: Asked, answer: Answer) -> Any:
    """A ModelInferResponse; its values are raw where the request's were."""
    output = pb.ModelInferResponse.InferOutputTensor(
        name="probability", datatype="FP32", shape=[len(answer.probability_M)]
    )
    raw = []
    if asked.binary:
        raw = [answer.probability_M.astype("<f4", copy=False).tobytes()]
    else:
        output.contents.fp32_contents.extend(answer.probability_M.tolist())
    return pb.ModelInferResponse(
        model_name=name,
        model_version=answer.version,
        id=asked.id,
        parameters={key: pb.InferParameter(string_param=value) for key, value in answer.parameters.items()},
        outputs=[output],
        raw_output_contents=raw,
    )


def _contents(tensor: Any) -> list[Any]:
    where = f"input '{tensor.name}'"
    if tensor.datatype not in CONTENTS:
        raise RequestError(f"{where} has datatype {tensor.datatype}, which only raw contents can hold: send another")
    values = getattr(tensor.contents, CONTENTS[tensor.datatype])
    return decoded(where, values) if tensor.datatype == "BYTES" else list(values)


def grpc_server(predictor: Predictor, host: str, port: int, max_bytes: int) -> tuple[grpc.aio.Server, int]:
    """A server that is not started yet, and its port. Raises NarrowcastError where the address cannot be had."""
    server = grpc.aio.server(
        interceptors=[Parsing(predictor)],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", max_bytes),
        ],
    )
    add_GRPCInferenceServiceServicer_to_server(Servicer(predictor), server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except (RuntimeError, OverflowError) as error:
        raise NarrowcastError(
            f"cannot listen on {host}:{port} for gRPC ({error}): free the port or give another with --grpc-port"
        ) from None
    return server, bound
