"""Synthetic click logs as encoded data, for measuring speed at any vocabulary."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from narrowcast.components.data.encoded import SPLITS, Layout
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json, writing_directory

SHARES = (0.3, 0.24, 0.2, 0.12, 0.08, 0.04, 0.015, 0.005)
"""Of all ids, by table, for the large tables: as in Criteo's log, a few fields hold nearly all ids."""
SMALL_ROWS = 50
"""Rows of every other table."""


def table_rows(num_ids: int, num_fields: int) -> list[int]:
    """Rows by table, `num_ids` in total up to rounding: the large ones of `SHARES`, the others small.

    Raises NarrowcastError where the smallest of the large ones would have no row.
    """
    num_small = num_fields - len(SHARES)
    assert num_small >= 0
    large = [int(share * (num_ids - num_small * SMALL_ROWS)) for share in SHARES]
    if large[-1] < 1:
        least = num_small * SMALL_ROWS + round(1 / SHARES[-1])
        raise NarrowcastError(f"{num_ids:,} ids are too few for {num_fields} fields: give at least {least:,}")
    return [*large, *[SMALL_ROWS] * num_small]


def draw_ids(rng: np.random.Generator, rows: int, count: int, distribution: str) -> np.ndarray:
    """int32 ids of one field. `power` draws id i with probability about 1/i (Zipf with exponent 1), so that ids count
    by descending frequency as in encoded data; `uniform` makes every id equally cold."""
    if distribution == "uniform":
        return rng.integers(0, rows, count, np.int32)
    return (rows ** rng.random(count)).astype(np.int32) - 1


def write_encoded(
    folder: Path, *, num_ids: int, num_fields: int, num_rows: int, distribution: str, held_out: int = 4096
) -> Path:
    """Encoded data with `num_rows` training rows and `held_out` rows in each other split; a quarter of the labels is 1,
    at random. There is no encoder."""
    rows = table_rows(num_ids, num_fields)
    fields = [f"f{i}" for i in range(num_fields)]
    layout = Layout(
        categorical=tuple(fields),
        numeric=(),
        sequences=(),
        table_of={field: field for field in fields},
        table_rows=dict(zip(fields, rows, strict=True)),
    )
    rng = np.random.default_rng(0)
    with writing_directory(folder) as made:
        write_json(made / "layout.json", asdict(layout))
        for split in SPLITS:
            count = num_rows if split == SPLITS[0] else held_out
            (made / split).mkdir()
            ids_BF = np.stack([draw_ids(rng, r, count, distribution) for r in rows], axis=1)
            np.save(made / split / "ids.npy", ids_BF)
            np.save(made / split / "dense.npy", np.zeros((count, 0), np.float32))
            np.save(made / split / "label.npy", (rng.random(count) < 0.25).astype(np.uint8))
            np.save(made / split / "row_id.npy", np.arange(count))
            np.save(made / split / "time.npy", np.zeros(count, np.int64))
            np.save(made / split / "group.npy", np.zeros(count, np.int32))
    return folder
