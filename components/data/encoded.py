"""Encoded shards: the training data as arrays, memory-mapped, with the encoder that made them.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json

SPLITS = ("train", "validation", "test")
PAD = -1
"""Fills a sequence after its last id; 0 is an out-of-vocabulary id, not padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Model inputs. Ids count by descending training frequency within a field; 0 is out-of-vocabulary.

    `sequences` by field, each B x L, padded with PAD at the end; or 1 x L, where one sequence stands for all rows.
    """

    ids_BF: NDArray[np.int32]
    dense_BN: NDArray[np.float32]
    sequences: dict[str, NDArray[np.int32]]

    def __len__(self) -> int:
        return len(self.ids_BF)

    def take(self, rows: NDArray[np.int64] | slice) -> "Batch":
        """Some of the rows; a sequence that stands for all rows still does."""
        return Batch(
            ids_BF=np.ascontiguousarray(self.ids_BF[rows]),
            dense_BN=np.ascontiguousarray(self.dense_BN[rows]),
            sequences={
                name: values if len(values) != len(self) else np.ascontiguousarray(values[rows])
                for name, values in self.sequences.items()
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One part of the data, memory-mapped.

    `label_B` uint8; `row_id_B` int64 as ingested; `time_B` int64 microseconds since 1970 (zeros without a timestamp);
    `group_B` int32 user ids for gAUC (zeros without a user).
    """

    inputs: Batch
    label_B: NDArray[np.uint8]
    row_id_B: NDArray[np.int64]
    time_B: NDArray[np.int64]
    group_B: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.label_B)

    def batches(self, size: int) -> Iterator[tuple[Batch, NDArray[np.uint8]]]:
        """In stored order, the last one shorter."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.inputs.take(rows), np.ascontiguousarray(self.label_B[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Names and sizes that a model is built from.

    `categorical`, `numeric` and `sequences` name the inputs in array order; `table_of` maps every categorical and
    sequence field to its table; `table_rows` gives each table's rows, out-of-vocabulary row included, in the order of
    the tables' first fields.
    """

    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    sequences: tuple[str, ...]
    table_of: dict[str, str]
    table_rows: dict[str, int]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Layout":
        """The layout as it was made: tables in the fields' order again, which JSON written with sorted keys loses."""
        categorical, sequences = tuple(data["categorical"]), tuple(data["sequences"])
        table_of = {name: data["table_of"][name] for name in (*categorical, *sequences)}
        return cls(
            categorical=categorical,
            numeric=tuple(data["numeric"]),
            sequences=sequences,
            table_of=table_of,
            table_rows={table: data["table_rows"][table] for table in dict.fromkeys(table_of.values())},
        )


class EncodedData:
    """An encoded artifact: `layout`, the row `counts` by split, and the splits themselves.

    On disk: `layout.json`, `encoder/`, and a folder a split with `ids.npy` (B x F int32), `dense.npy` (B x N float32),
    `sequence_<field>.npy` (B x L int32), `label.npy`, `row_id.npy`, `time.npy`, `group.npy`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "layout.json").is_file():
            raise NarrowcastError(f"{directory} holds no encoded data: run the encode step first")
        self.layout = Layout.from_json(read_json(self.directory / "layout.json"))

    def split(self, name: str) -> Split:
        """One of 'train', 'validation', 'test'."""
        folder = self.directory / name

        def read(stem: str) -> NDArray[Any]:
            return np.load(folder / f"{stem}.npy", mmap_mode="r", allow_pickle=False)

        return Split(
            inputs=Batch(
                ids_BF=read("ids"),
                dense_BN=read("dense"),
                sequences={field: read(f"sequence_{field}") for field in self.layout.sequences},
            ),
            label_B=read("label"),
            row_id_B=read("row_id"),
            time_B=read("time"),
            group_B=read("group"),
        )

    def table_counts(self) -> dict[str, NDArray[np.int64]]:
        """Training frequency of every row of every table (descending after row 0), from the vocabulary."""
        from narrowcast.components.data.encoder import Encoder

        return Encoder.load(self.directory / "encoder").counts()
