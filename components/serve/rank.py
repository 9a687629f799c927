"""Ask an endpoint to rank candidates for a user."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowcast.components.data.schema import Schema
from narrowcast.components.serve import client
from narrowcast.components.serve.deploy import Endpoint, read_endpoint
from narrowcast.components.serve.protocol import to_tensors
from narrowcast.errors import NarrowcastError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """`items`: (item, probability) by descending probability, equal ones in the order asked.

    `unknown_user` and `unknown_items` were never seen in training and are scored by the out-of-vocabulary row.
    `fallbacks` (`user`, `item`) are those whose features the store did not give in time: defaults stood for them.
    """

    items: list[tuple[str, float]]
    unknown_user: bool
    unknown_items: tuple[str, ...]
    fallbacks: tuple[str, ...] = ()


def rank(
    user: str,
    candidates: Sequence[str],
    *,
    endpoint: str,
    home: str | os.PathLike[str],
    context: Mapping[str, Any] | None = None,
) -> list[tuple[str, float]]:
    """(item, probability) by descending probability; see `ranking`."""
    return ranking(user, candidates, endpoint=endpoint, home=home, context=context).items


def ranking(
    user: str,
    candidates: Sequence[str],
    *,
    endpoint: str,
    home: str | os.PathLike[str],
    context: Mapping[str, Any] | None = None,
) -> Ranking:
    """Rank the candidates for the user by the running server's probabilities.

    `context` gives the schema's context fields, one value each, as text or number; any other input may be given too.

    Raises:
        NarrowcastError: if nothing serves there, or with the server's own sentence if it refuses the request.
    """
    state = read_endpoint(home, endpoint)
    schema = Schema.load(Path(state.model_path) / "schema.yaml")
    if not (schema.user and schema.item):
        raise NarrowcastError(
            f"endpoint '{endpoint}' serves schema '{schema.name}', which has no user and item keys to rank by: send "
            f"every input to {state.url}/v2/models/{state.model}/infer"
        )
    columns = {schema.user: [user], schema.item: list(candidates)}
    columns |= {name: [_value(schema, name, value)] for name, value in (context or {}).items()}
    answer = _ask(state, to_tensors(schema, columns), home)
    scored = sorted(zip(candidates, client.probabilities(answer), strict=True), key=lambda pair: -pair[1])
    told = {key: json.loads(names) for key, names in (answer.get("parameters") or {}).items()}
    return Ranking(
        items=scored,
        unknown_user=bool(told.get(f"unknown_{schema.user}")),
        unknown_items=tuple(told.get(f"unknown_{schema.item}", ())),
        fallbacks=tuple(told.get("fallbacks", ())),
    )


def _ask(state: Endpoint, tensors: list[dict[str, Any]], home: str | os.PathLike[str]) -> dict[str, Any]:
    """Ask the endpoint; once more if a deployment moved it meanwhile."""
    while True:
        try:
            return client.infer(state.url, state.model, tensors)
        except client.ServerGoneError:
            latest = read_endpoint(home, state.name)
            if latest == state:
                raise NarrowcastError(
                    f"endpoint '{state.name}' does not answer at {state.url}: deploy again with `narrowcast run`"
                ) from None
            state = latest


def _value(schema: Schema, name: str, value: Any) -> Any:
    """The command line's text as the field's type."""
    if name not in schema.input_names:
        raise NarrowcastError(f"schema '{schema.name}' has no input '{name}': {nearest(name, schema.input_names)}")
    kind = schema.field(name).type
    if not isinstance(value, str) or kind == "categorical":
        return value
    if kind == "sequence":
        return [item for item in value.split(",") if item]
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise NarrowcastError(f"input '{name}' is '{value}', but the field is numeric: give a finite number")
    return number
