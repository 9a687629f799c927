"""Ask a server, over HTTP, what the Open Inference Protocol v2 offers."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from narrowcast.errors import NarrowcastError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerGoneError(NarrowcastError):
    """Nothing answers at the address."""


def infer(url: str, model: str, tensors: list[dict[str, Any]], *, timeout: float = 30.0) -> dict[str, Any]:
    """The v2 answer of `model` at `url`.

    Raises:
        ServerGoneError: if nothing answers there.
        NarrowcastError: with the server's own sentence if it refuses the request.
    """
    return _call(f"{url}/v2/models/{model}/infer", {"inputs": tensors}, timeout)


def probabilities(answer: dict[str, Any]) -> list[float]:
    return next(output["data"] for output in answer["outputs"] if output["name"] == "probability")


def is_ready(url: str, model: str, *, timeout: float = 5.0) -> bool:
    """Whether a server at `url` says that it serves `model`."""
    try:
        return _call(f"{url}/v2/models/{model}/ready", None, timeout).get("ready") is True
    except NarrowcastError:
        return False


def _call(address: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            answer = response.read()
    except urllib.error.HTTPError as error:
        raise NarrowcastError(f"{address} answered {error.code}: {_sentence(error.read())}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ServerGoneError(
            f"nothing answers at {address} ({getattr(error, 'reason', error)}): deploy again"
        ) from None
    try:
        return json.loads(answer)
    except ValueError:
        raise NarrowcastError(
            f"{address} did not answer in JSON: another program has that port; deploy again"
        ) from None


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"
