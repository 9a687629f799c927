"""A request that any server of the packed model must answer alike, with every input given."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.schema import TIMESTAMP, Field, Schema

NUM_CANDIDATES = 10
TOLERANCE = 1e-6
"""Same values, same code: only the order of float32 sums may differ."""


def sample_request(rows: pd.DataFrame, schema: Schema, packed: PackedModel) -> dict[str, Any]:
    """`{"request", "expected", "tolerance"}` from frame rows; "The packed model" in docs/architecture.md defines it.

    The user of the latest row, as of then, ranks the items of that user's latest rows; where those are fewer than ten,
    the latest items of others fill up. Without an item key the user's rows are scored, without any key the latest.
    """
    if TIMESTAMP in rows:
        rows = rows.sort_values([TIMESTAMP, "row_id"], ascending=False)
    if schema.user and len(rows):
        own = rows[schema.user] == rows[schema.user].iloc[0]
        rows = pd.concat([rows[own], rows[~own]]) if schema.item else rows[own]
    if schema.item:
        rows = rows.drop_duplicates(schema.item)
    rows = rows.head(NUM_CANDIDATES)
    inputs, columns = [], {}
    for field in schema.inputs:
        shared = field.owner == "user" or (field.owner == "context" and schema.item is not None)
        values = [_plain(field, value) for value in (rows[field.name].head(1) if shared else rows[field.name])]
        columns[field.name] = values * len(rows) if shared else values
        inputs.append(_tensor(field, values))
    expected = packed.score(columns)
    return {
        "request": {"inputs": inputs},
        "expected": [float(probability) for probability in expected],
        "tolerance": TOLERANCE,
    }


def _plain(field: Field, value: Any) -> Any:
    """A frame's value as the server will see it: a string, None for a missing one, a number, or a list of strings."""
    if field.type == "sequence":
        return [str(item) for item in value] if isinstance(value, Sequence | np.ndarray) else []
    missing = pd.isna(value)
    if field.type == "categorical":
        return None if missing else str(value)
    return float((field.min or 0) if missing else value)


def _tensor(field: Field, values: list[Any]) -> dict[str, Any]:
    """One input of a request of the Open Inference Protocol v2."""
    if field.type == "numeric":
        return {"name": field.name, "shape": [len(values)], "datatype": "FP64", "data": values}
    texts = [json.dumps(value) if field.type == "sequence" else value or "" for value in values]
    return {"name": field.name, "shape": [len(values)], "datatype": "BYTES", "data": texts}
