"""The training frame: every event with what was known strictly before it."""

from datetime import timedelta

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from narrowcast.components.data.schema import HISTORY, LABEL, ROW_ID, SPLIT, TIMESTAMP, Schema
from narrowcast.components.data.split import assign_split
from narrowcast.components.features.sources import PRIOR_CLICK_RATE
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, views

BEFORE = timedelta(microseconds=1)
"""Taken from an event's time before the point-in-time join, which itself takes values up to and at a time."""


def training_frame(connection: duckdb.DuckDBPyConnection, store: FeatureStore, schema: Schema, seed: int) -> pa.Table:
    """The frame of docs/architecture.md: one row an event, ordered by time and row id.

    Raises NarrowcastError if a row was lost or repeated, a value is not from before its event, or a split is empty.
    """
    defaults = derived_defaults(schema)
    features: dict[str, str] = {}
    for view in views(schema):
        features |= {name: f'features."{name}"' for name in view.features}
    for name in defaults:
        features[name] = f"coalesce({features[name]}, ${name})"
    columns = [ROW_ID, *([TIMESTAMP] if schema.timestamp else []), LABEL, *schema.input_names]
    columns += [view.as_of for view in views(schema) if view.as_of]
    selected = ", ".join(f'{features.get(name, f"""events."{name}" """)} AS "{name}"' for name in columns)
    order = ", ".join(f'events."{name}"' for name in ([TIMESTAMP] if schema.timestamp else []) + [ROW_ID])
    joined = f'JOIN joined AS features USING ("{ROW_ID}")' if features else ""
    if features:
        connection.register("joined", _point_in_time(connection, store, schema))
    frame = connection.execute(f"SELECT {selected} FROM events {joined} ORDER BY {order}", defaults).to_arrow_table()
    _check(connection, frame, schema)
    time = frame[TIMESTAMP].to_numpy() if schema.timestamp else None
    split = assign_split(frame[ROW_ID].to_numpy(), time, schema, seed)
    return frame.add_column(frame.column_names.index(LABEL) + 1, SPLIT, pa.array(split))


def derived_defaults(schema: Schema) -> dict[str, object]:
    """The derived features of an entity without a past, by name."""
    defaults: dict[str, object] = {}
    for field in schema.statistics_fields:
        defaults[field.name] = 0.0 if field.name.endswith("_events") else PRIOR_CLICK_RATE
    if schema.history_field:
        defaults[HISTORY] = []
    return defaults


def _point_in_time(connection: duckdb.DuckDBPyConnection, store: FeatureStore, schema: Schema) -> pa.Table:
    """Row id and features of every event, by Feast's historical retrieval."""
    keys = ", ".join(f'"{key}"' for key in (schema.user, schema.item) if key)
    time = f'"{TIMESTAMP}"' if schema.timestamp else f"TIMESTAMPTZ '{EPOCH + timedelta(days=1)}' AS \"{TIMESTAMP}\""
    entities = connection.execute(f'SELECT "{ROW_ID}", {keys}, {time} FROM events').to_arrow_table().to_pandas()
    entities[TIMESTAMP] -= pd.Timedelta(BEFORE)
    job = store.get_historical_features(entities, store.get_feature_service(schema.feature_service))
    return job.to_arrow()


def _check(connection: duckdb.DuckDBPyConnection, frame: pa.Table, schema: Schema) -> None:
    events = np.sort(connection.execute(f'SELECT "{ROW_ID}" FROM events').fetchnumpy()[ROW_ID])
    if not np.array_equal(np.sort(frame[ROW_ID].to_numpy()), events):
        raise NarrowcastError(
            f"the point-in-time join returned {frame.num_rows} rows for {len(events)} events, or other ones: row ids "
            "in events.parquet must be unique; if they are, please report this with the run's log"
        )
    for view in views(schema):
        if view.as_of and schema.timestamp:
            late = np.sum(frame[view.as_of].to_numpy() >= frame[TIMESTAMP].to_numpy())  # false where there is no past
            if late:
                raise NarrowcastError(f"{late} rows know the future: their {view.as_of} is not before their event")
