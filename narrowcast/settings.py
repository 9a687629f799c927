"""Settings read from YAML or JSON into dataclasses."""

import dataclasses
import types
import typing
from typing import Any, Literal

from narrowcast.errors import NarrowcastError, nearest


def build(cls: Any, data: dict[str, Any], where: str) -> Any:
    """A dataclass of type `cls` from plain YAML or JSON values, strict about keys and types.

    Lists become tuples, whole numbers floats where the field says so. Raises NarrowcastError that begins with `where`
    and names the key, with the nearest valid one for a key that is unknown.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            raise NarrowcastError(f"{where}: unknown key '{key}'; {nearest(str(key), known)}")
    for key, spec in known.items():
        if key not in data and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise NarrowcastError(f"{where}: missing key '{key}'")
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise NarrowcastError(f"{where} is '{value}'; {nearest(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise NarrowcastError(
                f"{where} must be a list{'' if arguments[-1] is Ellipsis else f' of {len(arguments)}'}"
            )
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise NarrowcastError(f"{where} must be a mapping")
        return {
            _value(arguments[0], k, f"{where} key"): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise NarrowcastError(
                f"{where} must be a mapping with the keys {', '.join(f.name for f in dataclasses.fields(hint))}"
            )
        return build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # a pipeline's mappings know no other numbers than floats
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise NarrowcastError(f"{where} must be {hint.__name__}, not '{value}'")
    return value
