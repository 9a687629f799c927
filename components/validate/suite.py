"""The Great Expectations suite that a schema implies.

A `Check` is one expectation and the words for its failure. Structure (which columns, of which types) and values are
checked apart, because the values of a table of the wrong structure cannot be judged.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import HISTORY, LABEL, ROW_ID, SPLIT, TIMESTAMP, Field, Owner, Schema
from narrowcast.components.validate.tables import LIST_OF_TEXT, NUMBER, TEXT, TIME, foreign_in, is_known, length_of

TIMES = (pd.Timestamp("1970-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC"))
"""Event times outside are taken for a wrong unit."""
LARGEST = float(np.finfo(np.float32).max)
"""Bounds a numeric without bounds of its own: models read float32."""
TYPES = {"categorical": TEXT, "numeric": NUMBER, "sequence": LIST_OF_TEXT}
SPLIT_ORDER = "split.order"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One expectation; when it fails, a user reads that `column` has so many `fault`, and how to `mend` it.

    `rows`: the fault is that of single rows, which are counted; without it the table as a whole is at fault.
    `quarantine`: those rows may be set aside. `repeats`: the first row of every group of offending ones is sound.
    """

    column: str
    expectation: gxe.Expectation
    fault: str
    mend: str
    rows: bool = True
    quarantine: bool = False
    repeats: bool = False


def entity_fields(schema: Schema, owner: Owner) -> tuple[Field, ...]:
    """The columns of `users` or `items`."""
    return tuple(f for f in schema.fields if f.owner == owner)


def event_fields(schema: Schema) -> tuple[Field, ...]:
    """The fields that lie in `events`: keys and context."""
    return tuple(f for f in schema.fields if f.owner == "context" or f.name in (schema.user, schema.item))


def events_structure(schema: Schema) -> list[Check]:
    types = _field_types(event_fields(schema)) | {ROW_ID: ("int64",), LABEL: ("uint8", "int64")}
    types |= {TIMESTAMP: (TIME,)} if schema.timestamp else {}
    types |= {column: (TEXT,) for column in schema.checks.row_key or () if column not in types}
    return _structure(types)


def entity_structure(schema: Schema, owner: Owner) -> list[Check]:
    return _structure(_field_types(entity_fields(schema, owner)))


def frame_structure(schema: Schema) -> list[Check]:
    types = _field_types(schema.inputs) | {ROW_ID: ("int64",), LABEL: ("uint8",), SPLIT: (TEXT,)}
    types |= {TIMESTAMP: (TIME,)} if schema.timestamp else {}
    types |= dict.fromkeys(as_of_columns(schema), (TIME,))
    return _structure(types)


def as_of_columns(schema: Schema) -> tuple[str, ...]:
    """The frame's `user_as_of` and `item_as_of`, where it has derived inputs of them."""
    return tuple(dict.fromkeys(f"{f.owner}_as_of" for f in schema.inputs if f not in schema.fields))


def histories_structure(schema: Schema) -> list[Check]:
    assert schema.user is not None
    return _structure({schema.user: (TEXT,), HISTORY: (LIST_OF_TEXT,)})


def events_values(schema: Schema, owners: Collection[Owner]) -> list[Check]:
    """Checks over the values of `events`; `owners` have tables of their own, and an `is_known` column each."""
    checks = [*_row_count("events"), *_label(schema), *_times(schema, quarantine=True)]
    for field in event_fields(schema):
        checks += _field(field)
    keys: tuple[tuple[Owner, str | None], ...] = (("user", schema.user), ("item", schema.item))
    for owner, key in keys:
        needed = [f.name for f in schema.fields if f.owner == owner and f.name != key and not f.nullable]
        if key and needed and owner in owners:
            checks.append(
                Check(
                    column=key,
                    expectation=gxe.ExpectColumnValuesToBeInSet(column=is_known(key), value_set=[True]),
                    fault=f"values without a row in {owner}s",
                    mend=f"add the rows, or set `nullable: true` on the fields of the {owner}",
                    quarantine=True,
                )
            )
    if schema.checks.row_key:
        checks.append(
            Check(
                column=", ".join(schema.checks.row_key),
                expectation=_unique(schema.checks.row_key),
                fault="rows that repeat an earlier one",
                mend="remove the repeats, or mend checks.row_key",
                quarantine=True,
                repeats=True,
            )
        )
    return checks


def entity_values(schema: Schema, owner: Owner) -> list[Check]:
    key = schema.user if owner == "user" else schema.item
    assert key is not None
    return [
        *_row_count(f"{owner}s"),
        *(check for field in entity_fields(schema, owner) for check in _field(field)),
        _one_row(key, f"leave one row a {owner}"),
    ]


def histories_values(schema: Schema) -> list[Check]:
    assert schema.user is not None
    return [*_field(schema.field(schema.user)), _one_row(schema.user, "leave one row a user")]


def frame_values(schema: Schema) -> list[Check]:
    """Checks over the values of the training frame, to which `SPLIT_ORDER` has been added.

    Only the raw fields can be at fault row by row; whatever else fails is a defect of the step that made the frame.
    """
    checks = [*_row_count("frame"), *_label(schema), *_times(schema, quarantine=False)]
    for field in schema.inputs:
        checks += _field(field, quarantine=field in schema.fields)
    defect = "report it: the features step made this column"
    if history := schema.history_field:
        checks.append(
            Check(
                column=history.name,
                expectation=gxe.ExpectColumnValuesToBeBetween(column=length_of(history), max_value=history.max_length),
                fault=f"lists longer than {history.max_length}",
                mend=defect,
            )
        )
    checks.append(
        Check(column=ROW_ID, expectation=_unique([ROW_ID]), fault="rows that repeat another event", mend=defect)
    )
    checks.append(
        Check(
            column=SPLIT,
            expectation=gxe.ExpectColumnDistinctValuesToEqualSet(column=SPLIT, value_set=list(SPLITS)),
            fault=f"must hold each of {', '.join(SPLITS)} and nothing else",
            mend="add events, or change `split` in the schema",
            rows=False,
        )
    )
    if schema.timestamp:
        for column, fault in (
            (TIMESTAMP, "rows earlier than the row before them"),
            (SPLIT_ORDER, "rows of an earlier part than the row before them"),
        ):
            checks.append(
                Check(
                    column=column.split(".")[0],
                    expectation=gxe.ExpectColumnValuesToBeIncreasing(column=column),
                    fault=fault,
                    mend=defect,
                )
            )
    for column in as_of_columns(schema):
        checks.append(
            Check(
                column=column,
                expectation=gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                    column_A=TIMESTAMP, column_B=column, ignore_row_if="either_value_is_missing"
                ),
                fault=f"values not before the row's {TIMESTAMP}",
                mend=defect,
            )
        )
    return checks


def _structure(types: dict[str, tuple[str, ...]]) -> list[Check]:
    """The table holds just these columns, each of one of its types."""
    mend = "run the step that wrote this table again"
    checks = [
        Check(column=name, expectation=gxe.ExpectColumnToExist(column=name), fault="is missing", mend=mend, rows=False)
        for name in types
    ]
    checks.append(
        Check(
            column="*",
            expectation=gxe.ExpectTableColumnsToMatchSet(column_set=list(types), exact_match=True),
            fault="are not just those that the schema names",
            mend="a column known only after the event must never be an input: remove it from the table",
            rows=False,
        )
    )
    for name, allowed in types.items():
        checks.append(
            Check(
                column=name,
                expectation=gxe.ExpectColumnValuesToBeInSet(column=name, value_set=list(allowed)),
                fault=f"is not of type {' or '.join(allowed)}",
                mend=mend,
                rows=False,
            )
        )
    return checks


def _field_types(fields: Iterable[Field]) -> dict[str, tuple[str, ...]]:
    return {f.name: (TYPES[f.type],) for f in fields}


def _field(field: Field, *, quarantine: bool = True) -> list[Check]:
    """Nulls, range and id set of one field."""
    column = length_of(field) if field.type == "sequence" else field.name
    checks = []
    if not field.nullable:
        checks.append(
            Check(
                column=field.name,
                expectation=gxe.ExpectColumnValuesToNotBeNull(column=column),
                fault="values missing",
                mend="fill them in, or set `nullable: true` in the schema",
                quarantine=quarantine,
            )
        )
    if field.type == "numeric":
        low, high = (
            (field.min if field.min is not None else -LARGEST),
            (field.max if field.max is not None else LARGEST),
        )
        checks.append(
            Check(
                column=field.name,
                expectation=gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high),
                fault=f"values outside {low:g}..{high:g}",
                mend="mend the data, or widen `min` and `max` in the schema",
                quarantine=quarantine,
            )
        )
    if field.values is not None:
        expectation: gxe.Expectation
        if field.type == "sequence":
            expectation = gxe.ExpectColumnValuesToBeInSet(column=foreign_in(field), value_set=[0])
        else:
            expectation = gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(field.values))
        checks.append(
            Check(
                column=field.name,
                expectation=expectation,
                fault=f"values not among {', '.join(field.values)}",
                mend="mend the data, or add to `values` in the schema",
                quarantine=quarantine,
            )
        )
    return checks


def _one_row(key: str, mend: str) -> Check:
    return Check(
        column=key,
        expectation=_unique([key]),
        fault="rows that repeat an earlier one",
        mend=mend,
        quarantine=True,
        repeats=True,
    )


def _row_count(table: str) -> list[Check]:
    return [
        Check(
            column="*",
            expectation=gxe.ExpectTableRowCountToBeBetween(min_value=1),
            fault="have no rows",
            mend=f"give {table} at least one row",
            rows=False,
        )
    ]


def _label(schema: Schema) -> list[Check]:
    low, high = schema.checks.label_rate
    return [
        Check(
            column=LABEL,
            expectation=gxe.ExpectColumnValuesToNotBeNull(column=LABEL),
            fault="values missing",
            mend=f"mend column '{schema.label.column}'",
            quarantine=True,
        ),
        Check(
            column=LABEL,
            expectation=gxe.ExpectColumnValuesToBeInSet(column=LABEL, value_set=[0, 1]),
            fault="values that are neither 0 nor 1",
            mend=f"mend column '{schema.label.column}', or set label.at_least in the schema",
            quarantine=True,
        ),
        Check(
            column=LABEL,
            expectation=gxe.ExpectColumnMeanToBeBetween(column=LABEL, min_value=low, max_value=high),
            fault=f"must be positive in a share of {low:g}..{high:g} of the rows",
            mend="mend the data, or widen checks.label_rate in the schema",
            rows=False,
        ),
    ]


def _times(schema: Schema, *, quarantine: bool) -> list[Check]:
    if not schema.timestamp:
        return []
    source = f"column '{schema.timestamp.column}'"
    return [
        Check(
            column=TIMESTAMP,
            expectation=gxe.ExpectColumnValuesToNotBeNull(column=TIMESTAMP),
            fault="values missing",
            mend=f"mend {source}",
            quarantine=quarantine,
        ),
        Check(
            column=TIMESTAMP,
            expectation=gxe.ExpectColumnValuesToBeBetween(column=TIMESTAMP, min_value=TIMES[0], max_value=TIMES[1]),
            fault=f"values outside {TIMES[0].year}..{TIMES[1].year}",
            mend=f"mend {source}, or timestamp.unit in the schema",
            quarantine=quarantine,
        ),
    ]


def _unique(columns: Iterable[str]) -> gxe.Expectation:
    names = list(columns)
    if len(names) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=names[0])
    return gxe.ExpectCompoundColumnsToBeUnique(column_list=names)
