"""Drift from the training period to a later one (later rows of the frame, or logged requests), field by field.

Two figures measure two things and have a limit each. The *population stability index* (PSI) compares how the rows are
spread over buckets: sum over buckets of (q - p) ln(q / p), p the share of the training rows and q of the later ones
(Siddiqi, Credit Risk Scorecards, 2006). The *unseen share* counts the later ids that training never saw; they are kept
out of the PSI, where new users and items, normal in a split by time, would drown every other change. The trailing
counts and the user key have no PSI limit (our own choice): counts grow with the age of the log, and users come and go,
whatever the data does.

Buckets (our own choice):

- categorical with at most `MAX_VALUE_BUCKETS` training ids: one a value;
- categorical with more, the keys of users and items among them: training ids by descending frequency, cut into
  `NUM_RANK_BUCKETS` of about equal training rows. A bucket a value would measure the noise of rare ids; rank buckets
  ask whether the mass moved between head and tail, and do not see one id replace another of its rank;
- numeric: cut at the deciles of the training values;
- sequence: its elements, as for a categorical; an empty sequence counts as one missing element.

Missing values are a bucket of their own. Numerics also get the Kolmogorov-Smirnov statistic, without a limit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import SPLIT, Field, FieldType, Schema
from narrowcast.errors import NarrowcastError

MAX_VALUE_BUCKETS = 20
NUM_RANK_BUCKETS = 10
MISSING = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldDrift:
    """One field's drift. `ks` is None but for numerics, `unseen_share` is None for them.

    `limit` bounds `psi` (None: it is told, not bounded), `unseen_limit` bounds `unseen_share`; `passed` says that both
    hold.
    """

    name: str
    type: FieldType
    psi: float
    ks: float | None
    unseen_share: float | None
    limit: float | None
    unseen_limit: float
    passed: bool


def measure_drift(frame: Path, schema: Schema) -> list[FieldDrift]:
    """The drift of every input of the schema in a `frame.parquet`, sorted by name.

    Raises NarrowcastError when the training or the later period has no rows.
    """
    later_B = pc.not_equal(pq.read_table(frame, columns=[SPLIT])[SPLIT], "train").to_numpy()
    if later_B.all() or not later_B.any():
        empty = "training" if later_B.all() else "validation and test"
        raise NarrowcastError(f"the frame has no {empty} rows to measure drift with: add events or change `split`")
    return [_field_drift(field, _column(frame, field), later_B, schema) for field in _sorted_inputs(schema)]


def measure_drift_to(frame: Path, later: Callable[[Field], pa.Array], schema: Schema) -> Iterator[FieldDrift]:
    """The drift of every input from the frame's training rows to the values that `later` gives, sorted by name.

    Raises NarrowcastError when the frame has no training rows.
    """
    training_B = pc.equal(pq.read_table(frame, columns=[SPLIT])[SPLIT], SPLITS[0]).combine_chunks()
    num_training = training_B.true_count
    if not num_training:
        raise NarrowcastError(f"{frame} has no training rows to measure drift from: give the frame of a run")
    for field in _sorted_inputs(schema):
        training = _column(frame, field).filter(training_B)
        values = later(field).cast(training.type)
        later_B = np.arange(num_training + len(values)) >= num_training
        yield _field_drift(field, pa.concat_arrays([training, values]), later_B, schema)


def check_drift(fields: Sequence[FieldDrift]) -> None:
    """Raise NarrowcastError naming the field furthest past its limit."""
    failed = [field for field in fields if not field.passed]
    if not failed:
        return
    worst = max(failed, key=lambda f: max(_excess(f), (f.unseen_share or 0.0) - f.unseen_limit))
    if _excess(worst) > 0:
        found = f"has a PSI of {worst.psi:.3g} from the training to the later period, over the limit {worst.limit:g}"
        limit = "max_drift"
    else:
        found = f"has a share of {worst.unseen_share:.3g} of later ids unseen, over the limit {worst.unseen_limit:g}"
        limit = "max_unseen"
    mend = f"train on a period like the later one, remove the field, or raise checks.{limit} in the schema"
    others = len(failed) - 1
    more = f" ({others} more {'field' if others == 1 else 'fields'} over a limit)" if others else ""
    raise NarrowcastError(f"drift of the frame: field '{worst.name}' {found}: {mend}{more}")


def _excess(field: FieldDrift) -> float:
    return 0.0 if field.limit is None else field.psi - field.limit


def population_stability_index(training: NDArray[np.int64], later: NDArray[np.int64]) -> float:
    """PSI of two periods' row counts over the same buckets; 0 where a period has no rows at all.

    Half a row is added to every bucket (our own choice): an empty bucket does not make the PSI infinite, and a period
    of few rows does not make it large by chance. Buckets that are empty in both periods do not count.
    """
    if not training.sum() or not later.sum():
        return 0.0
    used = (training + later) > 0
    p, q = training[used] + 0.5, later[used] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def kolmogorov_smirnov(training: NDArray[np.float64], later: NDArray[np.float64]) -> float:
    """Largest distance between the two empirical distribution functions; 0 where a period has no values."""
    if not len(training) or not len(later):
        return 0.0
    training, later = np.sort(training), np.sort(later)
    at = np.concatenate([training, later])
    below_training = np.searchsorted(training, at, side="right") / len(training)
    below_later = np.searchsorted(later, at, side="right") / len(later)
    return float(np.max(np.abs(below_training - below_later)))


def numeric_buckets(training: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of every value, 0 to 9 by the deciles of `training` (fewer where deciles coincide); NaN is MISSING."""
    if not len(training):
        return np.where(np.isnan(values), MISSING, 0)
    cuts = np.unique(np.quantile(training, np.arange(1, 10) / 10, method="lower"))
    return np.where(np.isnan(values), MISSING, np.searchsorted(cuts, values, side="left"))


def id_buckets(training_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of every id that training saw, given its training rows; ids with 0 rows get a bucket to be left out.

    A bucket an id up to `MAX_VALUE_BUCKETS` ids, else `NUM_RANK_BUCKETS` by descending frequency, ties in the order
    given.
    """
    order = np.argsort(-training_counts, kind="stable")
    buckets = np.empty(len(training_counts), np.int64)
    if np.count_nonzero(training_counts) <= MAX_VALUE_BUCKETS:
        buckets[order] = np.arange(len(order))
        return buckets
    before = np.cumsum(training_counts[order]) - training_counts[order]
    buckets[order] = before * NUM_RANK_BUCKETS // training_counts.sum()
    return buckets


def _sorted_inputs(schema: Schema) -> list[Field]:
    return sorted(schema.inputs, key=lambda field: field.name)


def _column(frame: Path, field: Field) -> pa.Array:
    return pq.read_table(frame, columns=[field.name])[field.name].combine_chunks()


def _field_drift(field: Field, column: pa.Array, later_B: NDArray[np.bool_], schema: Schema) -> FieldDrift:
    limits = schema.checks
    ks: float | None = None
    unseen_share: float | None = None
    if field.type == "numeric":
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        training, later = (period[~np.isnan(period)] for period in (values[~later_B], values[later_B]))
        ks = kolmogorov_smirnov(training, later)
        psi = _psi(numeric_buckets(training, values), later_B)
    else:
        later_N = later_B
        if field.type == "sequence":
            column, row_N = _elements(column)
            later_N = later_B[row_N]
        psi, unseen_share = _id_drift(column, later_N)
    limit = None if field.name in (*schema.trailing_counts, schema.user) else limits.max_drift
    passed = (limit is None or psi <= limit) and (unseen_share or 0.0) <= limits.max_unseen
    return FieldDrift(
        name=field.name,
        type=field.type,
        psi=round(psi, 6),
        ks=None if ks is None else round(ks, 6),
        unseen_share=None if unseen_share is None else round(unseen_share, 6),
        limit=limit,
        unseen_limit=limits.max_unseen,
        passed=bool(passed),
    )


def _id_drift(column: pa.Array, later_N: NDArray[np.bool_]) -> tuple[float, float]:
    """PSI and unseen share of an array of text, N values, V distinct ones."""
    encoded = column.dictionary_encode()
    present_N = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    # Number the ids in string order: the figures must not depend on the order of the rows.
    rank_V = pc.rank(encoded.dictionary, tiebreaker="first").to_numpy() - 1
    ids_P = rank_V[encoded.indices.drop_null().to_numpy()]
    later_P = later_N[present_N]
    training_V = np.bincount(ids_P[~later_P], minlength=len(rank_V))
    seen_P = training_V[ids_P] > 0
    unseen_share = np.count_nonzero(~seen_P) / max(int(np.count_nonzero(later_P)), 1)
    bucket_N = np.full(len(column), MISSING)
    bucket_N[present_N] = id_buckets(training_V)[ids_P]
    known_N = np.ones(len(column), bool)
    known_N[present_N] = seen_P
    return _psi(bucket_N[known_N], later_N[known_N]), unseen_share


def _elements(column: pa.ListArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Every element of a list column with its row; an empty or missing list is one null element."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    empty = np.flatnonzero(lengths == 0)
    elements = pa.concat_arrays([pc.list_flatten(column), pa.nulls(len(empty), column.type.value_type)])
    return elements, np.concatenate([np.repeat(np.arange(len(lengths)), lengths), empty])


def _psi(buckets_N: NDArray[np.int64], later_N: NDArray[np.bool_]) -> float:
    shifted = buckets_N - MISSING
    num_buckets = int(shifted.max(initial=0)) + 1
    training, later = (np.bincount(shifted[period], minlength=num_buckets) for period in (~later_N, later_N))
    return population_stability_index(training, later)
