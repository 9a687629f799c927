"""The training frame to arrays by split, in bounded memory."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from narrowcast.components.data.columns import to_text
from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.encoder import Encoder, Fitting
from narrowcast.components.data.progress import watched
from narrowcast.components.data.schema import LABEL, ROW_ID, SPLIT, TIMESTAMP, Schema
from narrowcast.errors import NarrowcastError, nearest
from narrowcast.records import StepRecord, write_json, writing_directory

BATCH_ROWS = 1 << 16


def encode(frame: str | Path, schema: Schema, target: str | Path) -> None:
    """Fit the encoder on the training rows of `frame`, then write the arrays that `EncodedData` reads to `target`.

    Rows keep the frame's order within their split. Raises NarrowcastError for a frame that lacks a column, has a row
    without a known split, or leaves a split empty.
    """
    path = Path(frame) / "frame.parquet"
    encoder, rows = _fit(path, schema)
    with writing_directory(target) as folder:
        encoder.save(folder / "encoder")
        write_json(folder / "layout.json", asdict(encoder.layout))
        writers = {name: _SplitWriter(folder / name, encoder, rows[name]) for name in SPLITS}
        groups = _Groups(encoder)
        for batch in _batches(path, schema, "encoding"):
            split = to_text(batch.column(SPLIT))
            group_B = groups.number(batch)
            for name, writer in writers.items():
                kept = pc.equal(split, name)
                writer.write(batch.filter(kept), group_B[np.asarray(kept)])
        _record(encoder, writers, sum(rows.values())).save(folder)


def _fit(path: Path, schema: Schema) -> tuple[Encoder, dict[str, int]]:
    """The encoder, and the rows by split."""
    fitting = Fitting(schema)
    rows = dict.fromkeys(SPLITS, 0)
    for batch in _batches(path, schema, "counting ids"):
        split = to_text(batch.column(SPLIT))
        for counted in pc.value_counts(split).to_pylist():
            if counted["values"] not in rows:
                raise NarrowcastError(
                    f"{path} has {counted['counts']} rows of split '{counted['values']}': run the features step again"
                )
            rows[counted["values"]] += counted["counts"]
        training = batch.filter(pc.equal(split, SPLITS[0]))
        fitting.update({name: training.column(name) for name in schema.input_names})
    for name, count in rows.items():
        if count == 0:
            raise NarrowcastError(
                f"{path} has no {name} rows: give more data, or larger shares under the schema's `split`"
            )
    return fitting.finish(), rows


def _batches(path: Path, schema: Schema, doing: str) -> Iterator[pa.RecordBatch]:
    columns = [ROW_ID, *([TIMESTAMP] if schema.timestamp else []), LABEL, SPLIT, *schema.input_names]
    try:
        with pq.ParquetFile(path) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise NarrowcastError(
                        f"{path} has no column '{column}': {nearest(column, file.schema_arrow.names)}"
                    )
            yield from watched(file.iter_batches(BATCH_ROWS, columns=columns), doing, file.metadata.num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise NarrowcastError(f"{path} cannot be read ({str(error)[:200]}): run the features step again") from None


class _SplitWriter:
    """The arrays of one split, filled from the front."""

    def __init__(self, folder: Path, encoder: Encoder, rows: int) -> None:
        folder.mkdir()
        self.encoder = encoder
        self.at = 0
        self.positives = 0
        layout = encoder.layout
        self.unknown = np.zeros(len(layout.categorical), np.int64)

        def array(stem: str, dtype: Any, *width: int) -> NDArray[Any]:
            return open_memmap(folder / f"{stem}.npy", mode="w+", dtype=dtype, shape=(rows, *width))

        self.ids_BF = array("ids", np.int32, len(layout.categorical))
        self.dense_BN = array("dense", np.float32, len(layout.numeric))
        self.sequences = {
            name: array(f"sequence_{name}", np.int32, encoder.schema.field(name).max_length)
            for name in layout.sequences
        }
        self.label_B = array("label", np.uint8)
        self.row_id_B = array("row_id", np.int64)
        self.time_B = array("time", np.int64)
        self.group_B = array("group", np.int32)

    def write(self, batch: pa.RecordBatch, group_B: NDArray[np.int32]) -> None:
        inputs = self.encoder.transform({name: batch.column(name) for name in self.encoder.schema.input_names})
        rows = slice(self.at, self.at + len(batch))
        self.ids_BF[rows] = inputs.ids_BF
        self.dense_BN[rows] = inputs.dense_BN
        for name, values_BL in inputs.sequences.items():
            self.sequences[name][rows] = values_BL
        self.label_B[rows] = _clicks(batch.column(LABEL))
        self.row_id_B[rows] = batch.column(ROW_ID).to_numpy()
        if TIMESTAMP in batch.schema.names:
            self.time_B[rows] = batch.column(TIMESTAMP).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
        self.group_B[rows] = group_B
        self.at += len(batch)
        self.positives += int(self.label_B[rows].sum())
        self.unknown += (inputs.ids_BF == 0).sum(0)


def _clicks(label: pa.Array) -> NDArray[np.uint8]:
    values = label.to_numpy(zero_copy_only=False)
    if not np.isin(values, (0, 1)).all():
        count = int((~np.isin(values, (0, 1))).sum())
        raise NarrowcastError(f"{count} rows of the frame have a label other than 0 and 1: validate the frame first")
    return values.astype(np.uint8)


class _Groups:
    """Users numbered for per-user AUC: their vocabulary row, or a number of their own beyond it."""

    def __init__(self, encoder: Encoder) -> None:
        self.user = encoder.schema.user
        self.numbers: dict[str | None, int] = {}
        if self.user:
            for row, value in enumerate(encoder.values(self.user)[1:], start=1):
                self.numbers[value] = row
            self.next = len(self.numbers) + 1

    def number(self, batch: pa.RecordBatch) -> NDArray[np.int32]:
        if not self.user:
            return np.zeros(len(batch), np.int32)
        encoded = to_text(batch.column(self.user)).dictionary_encode(null_encoding="encode")
        found = np.empty(len(encoded.dictionary), np.int32)
        for i, value in enumerate(encoded.dictionary.to_pylist()):
            if value not in self.numbers:
                self.numbers[value] = self.next
                self.next += 1
            found[i] = self.numbers[value]
        return found[encoded.indices.to_numpy()]


def _record(encoder: Encoder, writers: dict[str, _SplitWriter], rows: int) -> StepRecord:
    """Rows, positives, and the share of out-of-vocabulary ids by split and field."""
    layout = encoder.layout
    return StepRecord(
        step="encode",
        rows_in=rows,
        rows_out=sum(writer.at for writer in writers.values()),
        metrics={f"rows_{name}": writer.at for name, writer in writers.items()},
        details={
            "rows": {name: writer.at for name, writer in writers.items()},
            "positives": {name: writer.positives for name, writer in writers.items()},
            "table_rows": layout.table_rows,
            "out_of_vocabulary": {
                name: dict(zip(layout.categorical, (writer.unknown / writer.at).tolist(), strict=True))
                for name, writer in writers.items()
            },
        },
    )
