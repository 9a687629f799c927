"""Between the tensors of a request (Open Inference Protocol v2) and the columns that a model scores.

A tensor is a mapping of `name`, `shape`, `datatype` and `data`: a list of values, or bytes in the protocol's binary
form.
M is the number of candidates: a column has M values, or one that stands for all of them.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from narrowcast.components.data.schema import Field, Schema
from narrowcast.errors import nearest

MAX_CANDIDATES = 10_000

BINARY: dict[str, str] = {
    **{
        f"{sign}INT{bits}": f"<{letter}{bits // 8}"
        for sign, letter in (("", "i"), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
"""How numpy reads a datatype's binary form."""
INTEGERS = frozenset(name for name in BINARY if "INT" in name)
FLOATS = frozenset(BINARY) - INTEGERS
DATATYPE = {"categorical": "BYTES", "numeric": "FP64", "sequence": "BYTES"}
"""The tensor type that the server names for a field's type; integers are taken for any but a sequence."""

_LENGTH = struct.Struct("<I")

Column: TypeAlias = list[Any] | NDArray[np.float64]
"""Of a categorical str, of a sequence lists of str, of a numeric float; None where missing."""


class RequestError(ValueError):
    """The client's mistake, in a sentence that names the input. `status` is HTTP's, `code` gRPC's."""

    status = 400
    code = "INVALID_ARGUMENT"


class NotServedError(RequestError):
    """No such model or version here."""

    status = 404
    code = "NOT_FOUND"


class TooLargeError(RequestError):
    """The payload is over the limit."""

    status = 413
    code = "RESOURCE_EXHAUSTED"


class BusyError(RequestError):
    """As many requests as the server takes are being answered already."""

    status = 503
    code = "RESOURCE_EXHAUSTED"


class NotReadyError(RequestError):
    """The server is still loading, or already ending."""

    status = 503
    code = "UNAVAILABLE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The given inputs, M values each or one for all candidates."""

    num_candidates: int
    columns: dict[str, Column]


class RequestReader:
    """Reads requests of one schema with at most `max_candidates` candidates."""

    def __init__(self, schema: Schema, max_candidates: int = MAX_CANDIDATES) -> None:
        self.user, self.item = schema.user, schema.item
        self.max_candidates = max_candidates
        self.has_keys = schema.user is not None and schema.item is not None
        self._fields = {field.name: field for field in schema.inputs}
        self._names = schema.input_names

    def read(self, tensors: Sequence[Mapping[str, Any]]) -> Request:
        """Columns of a request's tensors.

        Where the schema has both keys, user and item inputs may be left out, to be looked up, and the user key then
        names one user. A nullable context field left out is missing in every row.

        Raises:
            RequestError: for anything that cannot be scored, naming the input.
        """
        columns: dict[str, Column] = {}
        for tensor in tensors:
            name = tensor["name"]
            if name not in self._fields:
                raise RequestError(f"unknown input '{name}': {nearest(name, self._names)}")
            if name in columns:
                raise RequestError(f"input '{name}' is given twice: send it once")
            columns[name] = self._values(self._fields[name], tensor)
        num_candidates = self._num_candidates(columns)
        for name, field in self._fields.items():
            if name in columns or self._is_looked_up(field):
                continue
            if not (field.nullable and field.owner == "context"):
                raise RequestError(f"missing input '{name}': send one value, or one a candidate")
            columns[name] = [None]
        for name, values in columns.items():
            if len(values) not in (1, num_candidates):
                raise RequestError(
                    f"input '{name}' has {len(values)} values for {num_candidates} candidates: its shape must be [1] "
                    f"or [{num_candidates}]"
                )
        request = Request(num_candidates=num_candidates, columns=columns)
        if self.user and (names := self.to_look_up(request)):
            columns[self.user] = self._one_user(columns[self.user], names[0])
        return request

    def to_look_up(self, request: Request) -> tuple[str, ...]:
        """Inputs that the request leaves to the feature store."""
        return tuple(name for name in self._names if name not in request.columns)

    def _is_looked_up(self, field: Field) -> bool:
        return self.has_keys and field.owner != "context" and field.name not in (self.user, self.item)

    def _one_user(self, users: Column, left_out: str) -> Column:
        if len(set(users)) > 1:
            raise RequestError(
                f"input '{self.user}' names several users: its shape must be [1] unless every input is given "
                f"(here '{left_out}' is not)"
            )
        return users[:1]

    def _num_candidates(self, columns: Mapping[str, Column]) -> int:
        """M: the length of the item key, or without one the longest input's."""
        if self.user and self.item and self.item in columns:
            return len(columns[self.item])
        if columns:
            return max(map(len, columns.values()))
        raise RequestError(f"the request has no inputs: send {', '.join(self._names)}")

    def _values(self, field: Field, tensor: Mapping[str, Any]) -> Column:
        shape, datatype, data = tensor["shape"], tensor["datatype"], tensor["data"]
        where = f"input '{field.name}'"
        allowed, read = _READERS[field.type]
        length = shape[0] if len(shape) == 1 else 0
        if length > self.max_candidates:
            raise RequestError(
                f"{where} has {length} candidates, over the limit of {self.max_candidates}: send them in parts"
            )
        if isinstance(data, bytes) and datatype in allowed:
            data = _unpacked(where, datatype, data, length)
        if not isinstance(data, list | np.ndarray) or list(shape) != [len(data)]:
            held = f"{len(data)} values" if isinstance(data, list | np.ndarray) else "no list of values"
            raise RequestError(
                f"{where} has shape {list(shape)} and holds {held}: its shape must be [number of values]"
            )
        if not len(data):
            raise RequestError(f"{where} is empty: send at least one value")
        if datatype not in allowed:
            raise RequestError(
                f"{where} has datatype {datatype}, but the field is {field.type}: send {DATATYPE[field.type]}"
            )
        return read(field, data)


def to_tensors(schema: Schema, columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The inverse of `RequestReader.read`: one tensor a column; None and NaN are sent as null."""
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


def decoded(where: str, values: Sequence[bytes]) -> list[str]:
    """Text of the protocol's BYTES. Raises RequestError where it is no UTF-8."""
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise RequestError(f"{where} is not valid Unicode: send UTF-8 text") from None


def _unpacked(where: str, datatype: str, data: bytes, length: int) -> list[str] | NDArray[Any]:
    """Values of a tensor's binary form: numbers one after another, each text after its length in four bytes."""
    if datatype != "BYTES":
        kind = np.dtype(BINARY[datatype])
        if len(data) != length * kind.itemsize:
            raise RequestError(
                f"{where} has {len(data)} bytes of data where {length} values of {datatype} take "
                f"{length * kind.itemsize}: send as many as its shape says"
            )
        return np.frombuffer(data, kind)
    texts = []
    position = 0
    try:
        for _ in range(length):
            start = position + 4
            position = start + _LENGTH.unpack_from(data, position)[0]
            texts.append(data[start:position])
    except struct.error:
        position = -1
    if position != len(data):
        raise RequestError(
            f"{where} does not hold {length} texts, each after its length in four bytes: send as many as its shape says"
        )
    return decoded(where, texts)


def _plain(kind: str, value: Any) -> Any:
    if kind == "sequence":
        return json.dumps([str(item) for item in value] if value is not None else [])
    if value is None or value != value:
        return None
    return float(value) if kind == "numeric" else str(value)


def _categories(field: Field, data: list[Any] | NDArray[Any]) -> Column:
    values = data if isinstance(data, list) else data.tolist()
    kinds = set(map(type, values))
    if kinds == {int}:
        return list(map(str, values))
    if kinds == {str} and _is_text(values):
        return values
    return _one_by_one(field, values, _category)


def _numbers(field: Field, data: list[Any] | NDArray[Any]) -> Column:
    if isinstance(data, np.ndarray) or set(map(type, data)) <= {int, float}:
        try:
            numbers = np.asarray(data, np.float64)
        except OverflowError:
            numbers = np.array([math.inf])
        if np.isfinite(numbers).all():
            return numbers
    return _one_by_one(field, data if isinstance(data, list) else data.tolist(), _number)


def _lists(field: Field, data: list[Any]) -> Column:
    return _one_by_one(field, data, _list)


def _one_by_one(field: Field, data: list[Any], read: Callable[[Any], Any]) -> list[Any]:
    """Every value read by itself, so that a refusal can say which one is wrong; None where one is missing."""
    where = f"input '{field.name}'"
    values: list[Any] = []
    for position, value in enumerate(data):
        if value is None:
            if not field.nullable:
                raise RequestError(f"{where}: value {position} is null, but the field is never missing: send a value")
            values.append(None)
            continue
        try:
            values.append(read(value))
        except (ValueError, OverflowError) as error:
            raise RequestError(f"{where}: value {position} {error}") from None
    return values


def _is_text(values: list[str]) -> bool:
    """Whether all are valid Unicode, which half a surrogate pair is not."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _category(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"is a {_json_type(value)}: send a string")
    text = str(value)
    if not _is_text([text]):
        raise ValueError("is not valid Unicode: send UTF-8 text")
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
    try:
        items = orjson.loads(value) if isinstance(value, str) else None
    except ValueError:
        items = None
    if not isinstance(items, list) or not set(map(type, items)) <= {str, int}:
        raise ValueError('is not a JSON list of strings: send for example \'["a", "b"]\'')
    return [item if isinstance(item, str) else str(item) for item in items]


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "mapping"}
    return names.get(type(value), type(value).__name__)


_READERS: dict[str, tuple[frozenset[str], Callable[[Field, Any], Column]]] = {
    "categorical": (INTEGERS | {"BYTES"}, _categories),
    "numeric": (INTEGERS | FLOATS, _numbers),
    "sequence": (frozenset({"BYTES"}), _lists),
}
