"""What answers: a packed model with all that serves it, loaded and replaced as a whole."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.compact.packed import MANIFEST, PackedModel
from narrowcast.components.data.encoded import Batch
from narrowcast.components.data.schema import Schema
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.serve.amortised import CACHE_BYTES, Ranker
from narrowcast.components.serve.lookups import Lookups
from narrowcast.components.serve.protocol import MAX_CANDIDATES, NotReadyError, Request, RequestError, RequestReader
from narrowcast.components.serve.request_log import RequestLog
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json

WARM_CANDIDATES = (1, 10, 100, 500, 1000)
"""Sizes scored before a version answers: kernels choose and prepare their code by size."""
WARM_REQUESTS = 4
WARM_ITEMS = 10_000
"""So many of the most frequent items' features are in memory before a version answers."""
SAMPLE = "sample_request.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionConfig:
    """`deadline_ms` bounds a request's look-ups, `cache_bytes` the encoded histories that are kept; requests are logged
    to `request_log`, if there is one."""

    max_candidates: int = MAX_CANDIDATES
    deadline_ms: float = 50.0
    cache_bytes: int = CACHE_BYTES
    request_log: Path | None = None


@dataclass(kw_only=True, slots=True)
class Version:
    """One packed model and its feature store, by the md5 of the model's folder.

    `num_requests` began with it and have not ended. Its memory goes with the last reference to it.
    """

    md5: str
    packed: PackedModel
    ranker: Ranker
    lookups: Lookups
    reader: RequestReader
    log: RequestLog | None
    num_requests: int = 0

    @property
    def schema(self) -> Schema:
        return self.packed.schema

    @property
    def keys(self) -> tuple[str, ...]:
        """The user and the item key, where the schema has them."""
        return tuple(key for key in (self.schema.user, self.schema.item) if key)

    def encode(self, request: Request, found: dict[str, list[Any]]) -> tuple[dict[str, Any], Batch]:
        """All inputs by name, and the batch that they are encoded to. Raises RequestError."""
        columns = {name: found[name] for name in self.reader.to_look_up(request)} | request.columns
        try:
            return columns, self.packed.encoder.transform(columns)
        except NarrowcastError as error:
            raise RequestError(str(error)) from None

    def close(self) -> None:
        """End its threads, once what they write is written."""
        self.lookups.close()
        if self.log:
            self.log.close()


class Versions:
    """The version that answers now. A request holds the one that it began with; used by one thread.

    A replaced version is closed after the last request that began with it.
    """

    def __init__(self) -> None:
        self.current: Version | None = None

    @contextmanager
    def held(self) -> Iterator[Version]:
        version = self.current
        if version is None:
            raise NotReadyError("the server is still loading its model: ask again when /v2/health/ready says so")
        version.num_requests += 1
        try:
            yield version
        finally:
            version.num_requests -= 1
            self._retire(version)

    def switch(self, new: Version) -> None:
        """Let requests that begin from now on be answered by `new`."""
        old, self.current = self.current, new
        if old:
            self._retire(old)

    def _retire(self, version: Version) -> None:
        if version is not self.current and not version.num_requests:
            threading.Thread(target=version.close, name="retire").start()


def load_version(model: Path, store: Path, config: VersionConfig) -> Version:
    """A version that has answered its sample request and is warm; links are followed once, now.

    Raises:
        NarrowcastError: where model or store will not do.
    """
    model, store = model.resolve(), store.resolve()
    schema_name(model)
    packed = PackedModel.load(model)
    features = OnlineFeatures.load(store)
    if features.schema.hash != packed.schema.hash:
        raise NarrowcastError(
            f"the feature store {store} was built by another schema than the model {model} was trained by: give the "
            "store of the model's own run"
        )
    version = Version(
        md5=digest(model),
        packed=packed,
        ranker=Ranker(packed, cache_bytes=config.cache_bytes),
        lookups=Lookups(features, config.deadline_ms),
        reader=RequestReader(packed.schema, config.max_candidates),
        log=RequestLog(config.request_log, packed.schema) if config.request_log else None,
    )
    try:
        warm_up(version, check_sample(version, model))
        if item := packed.schema.item:
            table = packed.encoder.layout.table_of[item]
            version.lookups.preload([text for text in packed.encoder.values(table, 1 + WARM_ITEMS) if text])
    except BaseException:
        version.close()
        raise
    return version


def schema_name(model: Path) -> str:
    """Name of the schema that a packed model is for. Raises NarrowcastError where it is no packed model."""
    if not (model / MANIFEST).is_file():
        raise NarrowcastError(f"{model} holds no packed model: give the folder that the compact step wrote")
    return Schema.load(model / "schema.yaml").name


def check_sample(version: Version, model: Path) -> Batch:
    """Answer the packed sample request, and return it encoded.

    Raises:
        NarrowcastError: where an answer is further from the expected probability than the sample tolerates.
    """
    sample = read_json(model / SAMPLE)
    try:
        request = RequestReader(version.schema).read(sample["request"]["inputs"])
        _, batch = version.encode(request, {})
    except RequestError as error:
        raise NarrowcastError(f"{model} does not answer its own sample request ({error}): pack it again") from None
    (scored_M,) = version.ranker.score([batch])
    difference = float(np.abs(scored_M - np.asarray(sample["expected"], dtype=np.float32)).max())
    if not difference <= sample["tolerance"]:
        raise NarrowcastError(
            f"{model} answers its own sample request {difference:.3g} away from the expected probabilities, "
            f"where {sample['tolerance']:g} is allowed: pack it again"
        )
    return batch


def warm_up(version: Version, batch: Batch) -> None:
    """Score the sample's rows at all sizes, alone and in company."""
    for num_candidates in WARM_CANDIDATES:
        rows: NDArray[np.int64] = np.arange(num_candidates) % len(batch)
        version.ranker.score([batch.take(rows)])
    version.ranker.score([batch] * WARM_REQUESTS)


async def warm_lookups(version: Version) -> None:
    """Look a user and an item up, as the first read of a store opens it. Whether it answers does not matter."""
    if len(version.keys) == 2:
        await version.lookups.find("", [""])
