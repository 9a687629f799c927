"""The same load over gRPC."""

from collections.abc import Callable

import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from load.generator import Answer, LoadError


class GrpcSender:
    """Sends request number i, `make(i)`, over one channel; a refusal is counted by its gRPC status."""

    def __init__(self, address: str, make: Callable[[int], ModelInferRequest]) -> None:
        self.make = make
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def __call__(self, index: int) -> Answer:
        try:
            return Answer(status=200, body=await self._stub.ModelInfer(self.make(index)))
        except grpc.aio.AioRpcError as error:
            raise LoadError(f"gRPC {error.code().name}") from None

    async def close(self) -> None:
        await self._channel.close()
