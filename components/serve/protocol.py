"""Between the tensors of a request (Open Inference Protocol v2, JSON form) and the columns that a model scores.

M is the number of candidates: every column has M rows, a tensor of shape [1] being repeated.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrowcast.components.data.schema import Field, Schema
from narrowcast.errors import nearest

MAX_CANDIDATES = 10_000

INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
FLOATS = frozenset({"FP16", "FP32", "FP64"})
DATATYPE = {"categorical": "BYTES", "numeric": "FP64", "sequence": "BYTES"}
"""The tensor type that the server names for a field's type; integers are taken for any but a sequence."""


class RequestError(ValueError):
    """The client's mistake, in a sentence that names the input: answered with status 400."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The given inputs, M values each: str, float or list of str, None where missing."""

    num_candidates: int
    columns: dict[str, list[Any]]

    def to_look_up(self, schema: Schema) -> tuple[str, ...]:
        """Inputs that the request leaves to the feature store."""
        return tuple(name for name in schema.input_names if name not in self.columns)


def parse(schema: Schema, tensors: Sequence[Mapping[str, Any]]) -> Request:
    """Columns of the tensors (`name`, `shape`, `datatype`, `data`).

    Where the schema has both keys, user and item inputs may be left out, to be looked up, and the user key then has
    shape [1]. A nullable context field left out is missing in every row.

    Raises:
        RequestError: for anything that cannot be scored, naming the input.
    """
    given: dict[str, list[Any]] = {}
    for tensor in tensors:
        name = tensor["name"]
        if name not in schema.input_names:
            raise RequestError(f"unknown input '{name}': {nearest(name, schema.input_names)}")
        if name in given:
            raise RequestError(f"input '{name}' is given twice: send it once")
        given[name] = _values(schema.field(name), tensor)
    num_candidates = _num_candidates(schema, given)
    has_keys = schema.user is not None and schema.item is not None
    for field in schema.inputs:
        if field.name in given or (
            has_keys and field.owner != "context" and field.name not in (schema.user, schema.item)
        ):
            continue
        if not (field.nullable and field.owner == "context"):
            raise RequestError(f"missing input '{field.name}': send one value, or one a candidate")
        given[field.name] = [None]
    columns = {}
    for name, values in given.items():
        if len(values) not in (1, num_candidates):
            raise RequestError(
                f"input '{name}' has {len(values)} values for {num_candidates} candidates: its shape must be [1] or "
                f"[{num_candidates}]"
            )
        columns[name] = values * num_candidates if len(values) == 1 else values
    request = Request(num_candidates=num_candidates, columns=columns)
    if schema.user and len(set(columns[schema.user])) > 1 and (names := request.to_look_up(schema)):
        raise RequestError(
            f"input '{schema.user}' names several users: its shape must be [1] unless every input is given "
            f"(here '{names[0]}' is not)"
        )
    return request


def to_tensors(schema: Schema, columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The inverse of `parse`: one tensor a column; None and NaN are sent as null."""
    tensors = []
    for name, values in columns.items():
        kind = schema.field(name).type
        tensors.append(
            {
                "name": name,
                "shape": [len(values)],
                "datatype": DATATYPE[kind],
                "data": [_plain(kind, value) for value in values],
            }
        )
    return tensors


def signature(schema: Schema) -> list[dict[str, Any]]:
    """The model's inputs as the protocol's metadata describes them; -1 is M."""
    return [
        {"name": field.name, "datatype": DATATYPE[field.type], "shape": [1 if field.name == schema.user else -1]}
        for field in schema.inputs
    ]


def _plain(kind: str, value: Any) -> Any:
    if kind == "sequence":
        return json.dumps([str(item) for item in value] if value is not None else [])
    if value is None or value != value:
        return None
    return float(value) if kind == "numeric" else str(value)


def _num_candidates(schema: Schema, given: Mapping[str, Sequence[Any]]) -> int:
    """M: the length of the item key, or without one the longest input's."""
    if schema.user and schema.item and schema.item in given:
        length, name = len(given[schema.item]), schema.item
    elif given:
        length, name = max((len(values), name) for name, values in given.items())
    else:
        raise RequestError(f"the request has no inputs: send {', '.join(schema.input_names)}")
    if length > MAX_CANDIDATES:
        raise RequestError(
            f"input '{name}' has {length} candidates, over the limit of {MAX_CANDIDATES}: send them in parts"
        )
    return length


def _values(field: Field, tensor: Mapping[str, Any]) -> list[Any]:
    where = f"input '{field.name}'"
    shape, datatype, data = tensor["shape"], tensor["datatype"], tensor["data"]
    if not isinstance(data, list) or list(shape) != [len(data)]:
        held = f"{len(data)} values" if isinstance(data, list) else "no list of values"
        raise RequestError(f"{where} has shape {list(shape)} and holds {held}: its shape must be [number of values]")
    if not data:
        raise RequestError(f"{where} is empty: send at least one value")
    allowed, read = _READERS[field.type]
    if datatype not in allowed:
        raise RequestError(
            f"{where} has datatype {datatype}, but the field is {field.type}: send {DATATYPE[field.type]}"
        )
    values: list[Any] = []
    for position, value in enumerate(data):
        if value is None:
            if not field.nullable:
                raise RequestError(f"{where}: value {position} is null, but the field is never missing: send a value")
            values.append(None)
            continue
        try:
            values.append(read(value))
        except (ValueError, OverflowError, RecursionError) as error:
            raise RequestError(f"{where}: value {position} {error}") from None
    return values


def _category(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"is a {_json_type(value)}: send a string")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode: send UTF-8 text") from None
    return text


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is a {_json_type(value)}: send a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        raise ValueError("is NaN: send a finite number")
    if math.isinf(number):
        raise ValueError("is infinite: send a finite number")
    return number


def _list(value: Any) -> list[str]:
    wrong = 'is not a JSON list of strings: send for example \'["a", "b"]\''
    if not isinstance(value, str):
        raise ValueError(wrong)
    try:
        items = json.loads(value)
        if isinstance(items, list):
            return [_category(item) for item in items]
    except (ValueError, RecursionError):
        pass
    raise ValueError(wrong)


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "mapping"}
    return names.get(type(value), type(value).__name__)


_READERS: dict[str, tuple[frozenset[str], Callable[[Any], Any]]] = {
    "categorical": (INTEGERS | {"BYTES"}, _category),
    "numeric": (INTEGERS | FLOATS, _number),
    "sequence": (frozenset({"BYTES"}), _list),
}
