"""The features step: sources, Feast store and training frame."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import SPLIT, TIMESTAMP, Schema
from narrowcast.components.features.frame import training_frame
from narrowcast.components.features.sources import connect
from narrowcast.components.features.store import create_store, materialise
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, views
from narrowcast.records import StepRecord, writing_directory


def build_features(
    dataset: str | Path,
    schema: Schema,
    seed: int,
    frame_target: str | Path,
    store_target: str | Path,
    online_store: str = "",
) -> None:
    """Write the training frame and the feature store of a validated data set.

    The frame holds, for every event, what was known strictly before it; the online store what is known after the last.
    `online_store`: the URL of a Redis, or empty for SQLite in the folder.

    Raises NarrowcastError for missing tables, events without a time, an account of rows that does not add up, or a
    Redis that does not answer.
    """
    dataset = Path(dataset)
    if not (dataset / "events.parquet").is_file():
        raise NarrowcastError(f"{dataset} holds no events.parquet: run ingest and validate_raw first")
    with (
        connect(dataset) as connection,
        writing_directory(store_target) as store_folder,
        writing_directory(frame_target) as frame_folder,
    ):
        store = create_store(connection, schema, store_folder, online_store)
        frame = training_frame(connection, store, schema, seed)
        end = pc.max(frame[TIMESTAMP]).as_py() if schema.timestamp else EPOCH + timedelta(days=1)
        materialise(store, schema, end)
        pq.write_table(frame, frame_folder / "frame.parquet")
        StepRecord(
            step="features",
            rows_in=pq.read_metadata(dataset / "events.parquet").num_rows,
            rows_out=frame.num_rows,
            details={
                "splits": _split_details(frame, schema),
                "views": {view.name: list(view.features) for view in views(schema)},
                "num_inputs": len(schema.inputs),
            },
        ).save(frame_folder)


def _split_details(frame: pa.Table, schema: Schema) -> dict[str, dict[str, int | str]]:
    """Rows of every split, and its first and last time."""
    details: dict[str, dict[str, int | str]] = {}
    for name in SPLITS:
        rows = frame.filter(pc.equal(frame[SPLIT], name))
        details[name] = {"rows": rows.num_rows}
        if schema.timestamp:
            limits = pc.min_max(rows[TIMESTAMP]).as_py()
            details[name] |= {"first": limits["min"].isoformat(), "last": limits["max"].isoformat()}
    return details
