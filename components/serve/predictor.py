"""A request's way through the server, the same for every protocol: parse, look up, encode, score, respond."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import kserve
import numpy as np
import pyarrow as pa
from kserve.protocol.infer_type import InferResponse
from numpy.typing import NDArray

from narrowcast.components.data.columns import to_text
from narrowcast.components.data.encoded import Batch
from narrowcast.components.serve.batching import Batcher
from narrowcast.components.serve.logs import ACCESS
from narrowcast.components.serve.lookups import Looked
from narrowcast.components.serve.metrics import Metrics
from narrowcast.components.serve.protocol import (
    BusyError,
    Column,
    NotServedError,
    Request,
    RequestError,
    signature,
)
from narrowcast.components.serve.versions import Version, Versions

MAX_REQUESTS = 128
LARGE_BYTES = 256 << 10
"""A larger body is read and encoded in a thread, so that the other requests need not wait for it."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A decoded request: its tensors, as `protocol` describes them, its id, and whether its answer's data are to be
    `binary`."""

    id: str
    tensors: Sequence[Mapping[str, Any]]
    binary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Probabilities (float32, M) from `version`.

    `parameters`, JSON lists: `unknown_<key>` the user and item ids that the model never saw, `fallbacks` the owners
    whose features the store did not answer for, so that defaults stand for them.
    """

    version: str
    probability_M: NDArray[np.float32]
    parameters: dict[str, str] = field(default_factory=dict)


class Predictor(kserve.Model):
    """Scores candidates: given inputs from the request, the others from the feature store.

    `max_requests` are answered at a time; what comes on top is refused.
    """

    def __init__(self, name: str, *, max_requests: int = MAX_REQUESTS) -> None:
        super().__init__(name)
        self.versions = Versions()
        self.batcher = Batcher()
        self.metrics = Metrics(name)
        self.max_requests = max_requests
        self.num_requests = 0
        self.metrics.follow(self._live)

    async def healthy(self) -> bool:
        return self.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        with self.versions.held() as version:
            return signature(version.schema)

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "probability", "datatype": "FP32", "shape": [-1]}]

    def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> InferResponse:
        raise RequestError(f"only the v2 protocol is served: POST to /v2/models/{self.name}/infer")

    def explain(self, payload: Any, headers: dict[str, str] | None = None) -> InferResponse:
        raise RequestError(f"no explanations are served: POST to /v2/models/{self.name}/infer")

    def check_name(self, name: str, version: str | None = None) -> None:
        """Raises NotServedError for another model than the one served, or another version of it."""
        if name != self.name:
            raise NotServedError(f"no model '{name}' is served here: ask for '{self.name}'")
        current = self.versions.current
        if version and current and version != current.md5:
            raise NotServedError(
                f"version '{version}' of '{name}' is not served here: ask for '{current.md5}' or for none"
            )

    def check_room(self) -> None:
        """Raises BusyError where no further request is taken."""
        if self.num_requests >= self.max_requests:
            raise BusyError(f"the server is answering {self.num_requests} requests, its limit: try again later")

    async def answer(self, decode: Callable[[], Asked], respond: Callable[[Asked, Answer], T], *, num_bytes: int) -> T:
        """Answer one request of `num_bytes`; it is one version's from start to end.

        Raises:
            RequestError: for a request that cannot be scored, or not now.
        """
        self.check_room()
        self.num_requests += 1
        try:
            with self.versions.held() as version:
                return await self._answer(version, decode, respond, large=num_bytes > LARGE_BYTES)
        except RequestError as error:
            ACCESS.info("refused", extra={"fields": {"status": error.status, "reason": str(error)}})
            raise
        finally:
            self.num_requests -= 1

    async def _answer(
        self, version: Version, decode: Callable[[], Asked], respond: Callable[[Asked, Answer], T], *, large: bool
    ) -> T:
        started = perf_counter()

        def parse() -> tuple[Asked, Request]:
            asked = decode()
            return asked, version.reader.read(asked.tensors)

        with self.metrics.timed("parse"):
            asked, request = await asyncio.to_thread(parse) if large else parse()
        found = Looked(columns={})
        if version.reader.to_look_up(request):
            with self.metrics.timed("lookup"):
                found = await self._look_up(version, request)
        with self.metrics.timed("encode"):
            encode = partial(version.encode, request, found.columns)
            columns, batch = await asyncio.to_thread(encode) if large else encode()
        scored = await self.batcher.score(version.ranker, batch)
        if not np.isfinite(scored.probability_M).all():
            raise RequestError("the model gives no number for these inputs: send numbers of an ordinary size")
        with self.metrics.timed("respond"):
            parameters = {f"unknown_{key}": json.dumps(ids) for key, ids in self._unknown(version, columns, batch)}
            if found.fallbacks:
                parameters["fallbacks"] = json.dumps(found.fallbacks)
            answer = Answer(version=version.md5, probability_M=scored.probability_M, parameters=parameters)
            response = respond(asked, answer)
        self.metrics.scored(scored, perf_counter() - started)
        if version.log:
            version.log.write(columns, scored.probability_M, version.md5)
        if ACCESS.isEnabledFor(logging.INFO):
            fields = {
                "request_id": asked.id,
                "version": version.md5,
                "candidates": len(batch),
                "ms": round(1000 * (perf_counter() - started), 3),
                "queue_ms": round(1000 * scored.queue_seconds, 3),
                "score_ms": round(1000 * scored.score_seconds, 3),
                "fallbacks": found.fallbacks,
            }
            ACCESS.info("answered", extra={"fields": fields})
        return response

    def _live(self) -> tuple[str, dict[str, float]]:
        values: dict[str, float] = {
            "requests_in_flight": self.num_requests,
            "queue_depth": self.batcher.num_waiting,
        }
        current = self.versions.current
        if not current:
            return "", values
        values["model_info"] = 1
        values["history_cache_hits"] = current.ranker.hits
        values["history_cache_misses"] = current.ranker.misses
        values["history_cache_bytes"] = current.ranker.cached_bytes
        if current.log:
            values["request_log_dropped"] = current.log.dropped
        return current.md5, values

    async def _look_up(self, version: Version, request: Request) -> Looked:
        user, item = version.keys
        (user_id,) = _spelled(request.columns[user])
        found = await version.lookups.find(user_id, _spelled(request.columns[item]))
        for owner in found.fallbacks:
            self.metrics.fallback(owner)
        return found

    def _unknown(self, version: Version, columns: Mapping[str, Any], batch: Batch) -> list[tuple[str, list[str]]]:
        """The ids that the model never saw, by key; each is counted."""
        unknown = []
        for key in version.keys:
            values = columns[key]
            ids = batch.ids_BF[: len(values), version.packed.encoder.layout.categorical.index(key)]
            rows = np.flatnonzero(ids == 0)
            self.metrics.ids(key, len(values) - len(rows), len(rows))
            if len(rows):
                unknown.append((key, list(dict.fromkeys(values[row] for row in rows))))
        return unknown


def _spelled(ids: Column) -> list[str]:
    """Ids as the feature store has them: "1.0" is "1", a missing one ""."""
    if None not in ids and ".0" not in "\n".join(ids):
        return list(ids)
    return [text or "" for text in to_text(pa.array(ids, pa.string())).to_pylist()]
