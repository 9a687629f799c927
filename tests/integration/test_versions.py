"""Versions of a model in one process: which one a request gets, and that a replaced one leaves nothing behind."""

import asyncio
import gc
import json
import shutil
import time
import weakref

import pyarrow.parquet as pq
import pytest
import torch

from narrowcast.components.serve.predictor import Answer, Asked, Predictor
from narrowcast.components.serve.protocol import BusyError, NotReadyError, NotServedError, RequestError
from narrowcast.components.serve.versions import VersionConfig, load_version, warm_lookups
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest


@pytest.fixture
def load(tiny_run, tmp_path):
    config = VersionConfig(max_candidates=5, deadline_ms=20_000, cache_bytes=1 << 20, request_log=tmp_path / "log")
    return lambda: load_version(tiny_run.packed_model, tiny_run.feature_store, config)


def tensor(name, data):
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data}


def ask(predictor, items=("1", "2"), respond=lambda asked, answer: answer, num_bytes=100):
    tensors = [tensor("user_id", ["3"]), tensor("item_id", list(items)), tensor("device", ["tv"])]
    return predictor.answer(lambda: Asked(id="7", tensors=tensors), respond, num_bytes=num_bytes)


def test_a_request_keeps_the_version_that_it_began_with(load, tiny_run, tmp_path):
    async def run():
        predictor = Predictor("tiny")
        with pytest.raises(NotReadyError, match="still loading"):
            await ask(predictor)
        first, second = load(), load()
        object.__setattr__(second, "md5", "second")
        await warm_lookups(first)
        predictor.versions.switch(first)
        plain = await ask(predictor)
        assert plain.version == digest(tiny_run.packed_model)
        large = await ask(predictor, num_bytes=1 << 20)
        assert large.probability_M.tolist() == plain.probability_M.tolist()

        switched = asyncio.Event()

        def switch_while_answered(asked, answer):
            predictor.versions.switch(second)
            switched.set()
            assert predictor.versions.current is second
            return answer

        assert (await ask(predictor, respond=switch_while_answered)).version == plain.version
        assert (await ask(predictor)).version == "second"
        predictor.check_name("tiny", "second")
        with pytest.raises(NotServedError):
            predictor.check_name("tiny", plain.version)

        tables = [weakref.ref(tensor) for tensor in first.packed.network.state_dict(keep_vars=True).values()]
        parts = [weakref.ref(first.packed), weakref.ref(first.ranker), weakref.ref(first.packed.encoder)]
        assert all(isinstance(table(), torch.Tensor) for table in tables)
        gc.disable()  # whatever it took to the end must go without a search for cycles
        try:
            del first
            deadline = time.monotonic() + 60
            while any(part() is not None for part in (*tables, *parts)):
                assert time.monotonic() < deadline, "the replaced version stays in memory"
                await asyncio.sleep(0.05)
        finally:
            gc.enable()
        predictor.batcher.close()
        await asyncio.to_thread(second.close)

    asyncio.run(run())
    logged = [pq.read_table(part) for part in sorted((tmp_path / "log").glob("part-*.parquet"))]
    versions = [version for table in logged for version in table.column("_version").to_pylist()]
    assert sorted(versions) == sorted([digest(tiny_run.packed_model)] * 3 + ["second"])


def test_no_more_requests_than_may_be_answered_at_a_time(load):
    async def run():
        predictor = Predictor("tiny", max_requests=3)
        version = load()
        predictor.versions.switch(version)
        await warm_lookups(version)
        answers = await asyncio.gather(*(ask(predictor) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(answer, Answer) for answer in answers) == 3
        assert sum(isinstance(answer, BusyError) for answer in answers) == 2
        assert predictor.num_requests == version.num_requests == 0
        with pytest.raises(RequestError, match="over the limit of 5"):
            await ask(predictor, items=[str(i) for i in range(6)])
        assert isinstance(await ask(predictor), Answer)
        predictor.batcher.close()
        with pytest.raises(NotReadyError, match="ending"):
            await ask(predictor)
        await asyncio.to_thread(version.close)

    asyncio.run(run())


def test_a_sample_answered_otherwise_is_refused(tiny_run, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(tiny_run.packed_model, odd)
    sample = json.loads((odd / "sample_request.json").read_text())
    sample["expected"][0] += 0.01
    (odd / "sample_request.json").write_text(json.dumps(sample))
    manifest = json.loads((odd / "manifest.json").read_text())
    manifest["md5"]["sample_request.json"] = digest(odd / "sample_request.json")
    (odd / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NarrowcastError, match=r"answers its own sample request 0\.01 away"):
        load_version(odd, tiny_run.feature_store, VersionConfig())
