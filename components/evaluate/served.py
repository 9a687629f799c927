"""What a running server does with test rows: parity of its scores, and its latency.

Shape letter: B test rows.
"""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from narrowcast.components.data.schema import Schema
from narrowcast.components.serve import client
from narrowcast.components.serve.process import Server
from narrowcast.components.serve.protocol import to_tensors
from narrowcast.errors import NarrowcastError

PARITY_ROWS = 2000
PARITY_BATCH = 500
LATENCY_CANDIDATES = 100
LATENCY_REQUESTS = 50
WARM_UP_REQUESTS = 5


def parity(server: Server, schema: Schema, rows: pd.DataFrame, expected_B: NDArray[np.float32]) -> tuple[float, int]:
    """Largest difference between served and expected probabilities, and on how many rows it was measured.

    Every input is sent, so that the rows are scored as of their own time. Up to `PARITY_ROWS` rows, evenly spread.
    """
    positions = _sendable(schema, rows)
    positions = positions[:: -(-len(positions) // PARITY_ROWS)]
    difference = 0.0
    for start in range(0, len(positions), PARITY_BATCH):
        chosen = positions[start : start + PARITY_BATCH]
        answer = client.infer(server.url, server.name, _all_inputs(schema, rows.iloc[chosen]))
        scored = np.asarray(client.probabilities(answer), dtype=np.float32)
        difference = max(difference, float(np.abs(scored - expected_B[chosen]).max()))
    return difference, len(positions)


def sample_difference(server: Server, sample: dict[str, Any]) -> float:
    """Largest difference of the server's answer to the sample request from the expected probabilities."""
    scored = client.probabilities(client.infer(server.url, server.name, sample["request"]["inputs"]))
    return float(np.abs(np.asarray(scored, dtype=np.float32) - np.asarray(sample["expected"], dtype=np.float32)).max())


def latency(server: Server, schema: Schema, rows: pd.DataFrame) -> dict[str, float]:
    """Milliseconds of one ranking request over a kept connection: p50, p90, p99, with the number of candidates.

    The last test row's user and context with up to `LATENCY_CANDIDATES` items of the test rows, looked up in the
    feature store; without both keys in the schema, as many rows with every input given.
    """
    sendable = rows.iloc[_sendable(schema, rows)]
    if schema.user and schema.item:
        last = sendable.iloc[-1]
        candidates = list(dict.fromkeys(sendable[schema.item]))[:LATENCY_CANDIDATES]
        columns = {schema.user: [last[schema.user]], schema.item: candidates}
        columns |= {field.name: [last[field.name]] for field in schema.inputs if field.owner == "context"}
        tensors = to_tensors(schema, columns)
    else:
        candidates = list(sendable.index[:LATENCY_CANDIDATES])
        tensors = _all_inputs(schema, sendable.iloc[:LATENCY_CANDIDATES])
    body = json.dumps({"inputs": tensors}).encode()
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        elapsed = [_request_ms(connection, server, body) for _ in range(WARM_UP_REQUESTS + LATENCY_REQUESTS)]
    finally:
        connection.close()
    quantiles = np.quantile(elapsed[WARM_UP_REQUESTS:], [0.5, 0.9, 0.99])
    p50, p90, p99 = (round(float(value), 3) for value in quantiles)
    return {"p50": p50, "p90": p90, "p99": p99, "candidates": len(candidates), "requests": LATENCY_REQUESTS}


def _request_ms(connection: http.client.HTTPConnection, server: Server, body: bytes) -> float:
    started = time.perf_counter()
    connection.request("POST", f"/v2/models/{server.name}/infer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    elapsed_ms = 1000 * (time.perf_counter() - started)
    if response.status != 200:
        raise NarrowcastError(f"the server answered a ranking request with {response.status}: {answer[:200]!r}")
    return elapsed_ms


def _sendable(schema: Schema, rows: pd.DataFrame) -> NDArray[np.intp]:
    """Positions of the rows that a client may send: nothing missing that the schema says never is (a joined row can
    lack its item). Raises NarrowcastError where there are none.
    """
    required = [field.name for field in schema.inputs if not field.nullable and field.type != "sequence"]
    positions = np.flatnonzero(rows[required].notna().all(axis=1).to_numpy())
    if not len(positions):
        raise NarrowcastError("no test row has every input that may not be missing: look at the validation's report")
    return positions


def _all_inputs(schema: Schema, rows: pd.DataFrame) -> list[dict[str, Any]]:
    return to_tensors(schema, {name: rows[name].tolist() for name in schema.input_names})
