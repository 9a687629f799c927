"""Which rows train, which validate, which test."""

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import Schema
from narrowcast.errors import NarrowcastError


def assign_split(row_id: NDArray[np.int64], time: NDArray | None, schema: Schema, seed: int) -> NDArray[np.str_]:
    """'train', 'validation' or 'test' for every row, in the given order; shares as `schema.split` says.

    With a `time` (datetime64 or integers) the latest rows are held out and a boundary never falls between two equal
    times: a split's last time belongs to it whole, so shares are met up to the rows of one time. Without one, rows are
    held out at random: in the order of a hash of `row_id` and `seed`, so that a row more or less moves hardly any
    other (our choice). Raises NarrowcastError if a split would be empty or a time is missing.
    """
    if time is None:
        rank = np.argsort(np.argsort(_hash(row_id, seed), kind="stable"), kind="stable")
    else:
        if np.issubdtype(time.dtype, np.datetime64) and np.isnat(time).any():
            raise NarrowcastError(
                f"{np.isnat(time).sum()} rows have no time to split them by: refuse them in validation"
            )
        rank = time
    shares = (1 - schema.split.validation - schema.split.test, 1 - schema.split.test)
    ordered = np.sort(rank)
    last_train, last_validation = (
        (ordered[int(round(share * (len(ordered) - 1), 6))] for share in shares) if len(ordered) else (0, 0)
    )
    split = np.select([rank <= last_train, rank <= last_validation], SPLITS[:2], SPLITS[2])
    for name in SPLITS:
        if not (split == name).any():
            raise NarrowcastError(
                f"the {name} split of schema '{schema.name}' would be empty ({len(split)} rows, {len(np.unique(rank))} "
                "different times): give more data, or larger shares under `split`"
            )
    return split


def _hash(row_id: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A well-mixed 64-bit value a row: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014, figure 16)."""
    with np.errstate(over="ignore"):
        z = row_id.astype(np.uint64) + np.uint64(seed % 2**32 + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
