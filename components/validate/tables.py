"""Parquet tables as Great Expectations sees them.

Two frames stand for a table. `column_types` has one row, and under every column's name its type: a suite over it checks
structure without reading a value. `load_values` holds the values in a form that checks quickly: text as pandas
categoricals, a list as its length. Names of added columns hold a dot, which no field's name can.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from narrowcast.components.data.schema import Field
from narrowcast.errors import NarrowcastError

TEXT = "text"
LIST_OF_TEXT = "list of text"
NUMBER = "double"
TIME = "time in UTC"


def length_of(field: Field) -> str:
    return f"{field.name}.length"


def foreign_in(field: Field) -> str:
    """Number of a sequence's elements that are not among `field.values`."""
    return f"{field.name}.foreign"


def is_known(key: str) -> str:
    """Whether the entity has a row in its table."""
    return f"{key}.known"


def column_types(path: Path) -> pd.DataFrame:
    """One row: the type of every column; text, lists of text and times have one name each whatever their Arrow type."""
    return pd.DataFrame({field.name: [_type_name(field.type)] for field in _open(path).schema_arrow})


def load_values(path: Path, fields: Iterable[Field], others: Iterable[str] = ()) -> pd.DataFrame:
    """The fields' and the other columns' values, a row for a row."""
    file = _open(path)
    values: dict[str, object] = {}
    for field in fields:
        column = file.read(columns=[field.name])[field.name].combine_chunks()
        if field.type != "sequence":
            values[field.name] = _to_pandas(column)
            continue
        values[length_of(field)] = pc.list_value_length(column).to_pandas()
        if field.values is not None:
            foreign = pc.invert(pc.is_in(pc.list_flatten(column), pa.array(field.values))).to_numpy(
                zero_copy_only=False
            )
            row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
            values[foreign_in(field)] = np.bincount(row[foreign], minlength=len(column))
    for name in others:
        values[name] = _to_pandas(file.read(columns=[name])[name].combine_chunks())
    return pd.DataFrame(values)


def known_entities(events: pd.Series, entities: pd.Series) -> pd.Series:
    """For every event's key whether it is among the entities' keys; null where the event has none."""
    return events.isin(entities).astype("boolean").mask(events.isna())


def _to_pandas(column: pa.Array) -> pd.Series:
    return (column.dictionary_encode() if _type_name(column.type) == TEXT else column).to_pandas()


def _type_name(type_: pa.DataType) -> str:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return TEXT
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return LIST_OF_TEXT if _type_name(type_.value_type) == TEXT else str(type_)
    if pa.types.is_timestamp(type_) and type_.tz == "UTC":
        return TIME
    return str(type_)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise NarrowcastError(f"{path} does not exist: run the step that writes it first") from None
    except (pa.ArrowException, OSError) as error:
        raise NarrowcastError(f"{path} is not readable Parquet ({error}): delete it and run its step again") from None
