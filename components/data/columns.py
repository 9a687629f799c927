"""Raw values to the four kinds of column that the tables hold: text, numbers, times, lists of text.

Ingestion and the encoder share these rules, so an id has one spelling from the raw file to a request at the server.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

TIME = pa.timestamp("us", tz="UTC")
LISTS = pa.list_(pa.string())
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
EARLIEST, LATEST = (int(pd.Timestamp(f"{year}-01-01").value // 1000) for year in (1900, 2200))
"""Times outside these years are taken for a wrong unit; later steps could not hold them in nanoseconds."""
MISSING_NUMBERS = pa.array(["", "na", "n/a", "nan", "null", "none"])
_WHOLE = r"^(-?\d+)\.0+$"
_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


def plain(values: pa.Array) -> pa.Array:
    """The array without dictionary encoding or 64-bit offsets."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    return values


def to_text(values: pa.Array) -> pa.Array:
    """One spelling for an id: integers without a decimal point, whether they came as 1, 1.0 or "1.0".

    NaN and empty text are null.

    Raises pa.ArrowInvalid or pa.ArrowNotImplementedError for values that have no text, such as lists.
    """
    values = plain(values)
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), 2.0**63))
        integers = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
        return pc.if_else(whole, integers, values.cast(pa.string()))
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    if not pa.types.is_string(values.type):
        values = values.cast(pa.string())
    if pc.equal(values, "").true_count:
        values = pc.if_else(pc.equal(values, ""), None, values)
    if pc.match_substring(values, ".0").true_count:
        values = pc.replace_substring_regex(values, _WHOLE, r"\1")
    return values


def to_number(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """float64 with missing values as null, and a mask of the values that are no finite numbers (null in the first)."""
    values = plain(values)
    if pa.types.is_string(values.type):
        text = pc.utf8_trim_whitespace(values)
        try:
            numbers = text.cast(pa.float64())
        except pa.ArrowInvalid:
            text = pc.utf8_lower(text)
            text = pc.if_else(pc.is_in(text, MISSING_NUMBERS), None, text)
            text = pc.if_else(pc.equal(text, "true"), "1", pc.if_else(pc.equal(text, "false"), "0", text))
            numbers = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, None).cast(pa.float64())
            values = text
    elif pa.types.is_temporal(values.type) or _is_opaque(values.type):
        numbers = pa.nulls(len(values), pa.float64())
    else:
        numbers = values.cast(pa.float64(), safe=False)
    nan = pc.fill_null(pc.is_nan(numbers), False)
    finite = pc.if_else(pc.is_finite(numbers), numbers, None)
    bad = pc.and_(pc.and_(pc.is_valid(values), pc.is_null(finite)), pc.invert(nan))
    return finite, bad


def to_time(values: pa.Array, unit: str) -> tuple[pa.Array, pa.Array]:
    """timestamp[us, UTC], and a mask of the values that are no times between 1900 and 2200 (null in the first).

    A column that already is a timestamp or a date keeps its meaning, whatever the unit. Times without a zone are UTC.
    """
    values = plain(values)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        zone = getattr(values.type, "tz", None)
        micros = values.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    elif pa.types.is_temporal(values.type) or _is_opaque(values.type):
        micros = pa.nulls(len(values), pa.int64())  # a time of day or a duration is no moment
    elif unit == "iso":
        text = values if pa.types.is_string(values.type) else values.cast(pa.string())
        micros = _parsed(text, "ISO8601")
    elif unit == "YYMMDDHH":
        text = pc.utf8_lpad(to_text(values), 8, "0")
        micros = _parsed(pc.binary_join_element_wise("20", text, ""), "%Y%m%d%H")
    else:
        micros = _scaled(values, MICROSECONDS[unit])
    possible = pc.and_(pc.greater_equal(micros, EARLIEST), pc.less(micros, LATEST))
    times = pc.if_else(possible, micros, None).cast(pa.timestamp("us")).cast(TIME)
    return times, pc.and_(pc.is_valid(values), pc.is_null(times))


def _is_opaque(type_: pa.DataType) -> bool:
    """Whether neither a number nor a time can be read from the type."""
    return bool(pa.types.is_nested(type_) or pa.types.is_binary(type_))


def _parsed(text: pa.Array, format: str) -> pa.Array:
    """Microseconds since 1970 by a format of pandas; null where the text does not follow it."""
    times = pd.to_datetime(text.to_pandas(), utc=True, format=format, errors="coerce")
    return pa.array(times.dt.as_unit("us")).cast(pa.int64())


def _scaled(values: pa.Array, factor: int) -> pa.Array:
    """Whole microseconds; integers stay exact. What is no number, or far too large, is null."""
    try:
        exact = values.cast(pa.int64())
        return pc.multiply_checked(exact, factor)
    except pa.ArrowInvalid:
        micros = pc.multiply(to_number(values)[0], float(factor))
        micros = pc.if_else(pc.less(pc.abs(micros), 2.0**62), micros, None)
        return pc.round(micros).cast(pa.int64())


def to_lists(values: pa.Array, separator: str | None = None) -> pa.Array:
    """list<string>: a list column, or text split at `separator`; empty elements are dropped, null stays null.

    Raises pa.ArrowInvalid for values that are neither.
    """
    values = plain(values)
    if pa.types.is_null(values.type):
        return values.cast(LISTS)
    if pa.types.is_string(values.type) and separator is not None:
        values = pc.split_pattern(values, separator)
    if not pa.types.is_list(values.type):
        values = values.cast(pa.list_(getattr(values.type, "value_type", pa.string())))
    flat = pc.list_flatten(values)
    elements = to_text(
        pc.utf8_trim_whitespace(flat) if separator is not None and pa.types.is_string(flat.type) else flat
    )
    if elements is flat and not elements.null_count:
        return values
    kept = np.asarray(pc.is_valid(elements))
    lengths = np.bincount(np.asarray(pc.list_parent_indices(values))[kept], minlength=len(values))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pc.is_null(values) if values.null_count else None
    return pa.ListArray.from_arrays(offsets, elements.drop_null(), mask=missing)
