"""Broken and odd requests, each given by a seed and its number: what a server must refuse in words, or answer.

Every maker takes a source of chance and a good v2 request (JSON form) and gives what goes over the wire.
"""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest

Body = dict[str, Any]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "FETCHALL")
DATATYPES = ("BOOL", "INT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BYTES", "bytes", "BF16", "STRING", "", "FP128")
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    -0.0,
    1e-320,
    1e308,
    -1e39,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    "",
    "0",
    "1e999",
    "nan",
    " 3",
    "\x00",
    "\ud800",
    "\U0001f600",
    "İ" * 300,
    "x" * 3000,
    "[]",
    '["a", 1, null]',
    "[" * 2000,
    '{"a": 1}',
    [],
    {},
    [[]],
    [None],
    {"data": []},
    ["a", 1, None, 2.5],
    [1e400],
)
CONTENT_TYPES = (
    "application/json",
    "application/octet-stream",
    "text/plain",
    "application/cloudevents+json",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-7",
    "application/x-www-form-urlencoded",
    "",
    "a" * 300,
)
BAD_STATUS = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"})
"""gRPC's words for the server's own fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """`wire`: the bytes to send over a connection of its own. `framed`: they are whole HTTP, so an answer must come."""

    kind: str
    wire: bytes
    framed: bool = True


def odd_request(seed: int, number: int, good: Body, model: str) -> Odd:
    """Request `number` of those that `seed` gives."""
    chance = random.Random(f"{seed} {number}")
    kind = chance.choices(list(_MAKERS), weights=[weight for weight, _ in _MAKERS.values()])[0]
    return _MAKERS[kind][1](chance, copy.deepcopy(good), model)


def odd_rpc(seed: int, number: int, good: Body, model: str) -> bytes:
    """A ModelInfer message, serialised, as broken as `odd_request`."""
    chance = random.Random(f"{seed} rpc {number}")
    message = good_rpc(good, model, raw=chance.random() < 0.5)
    for _ in range(chance.randint(0, 3)):
        _lie_in_rpc(chance, message)
    wire = message.SerializeToString()
    return _mutated(chance, wire) if chance.random() < 0.4 else wire


def good_rpc(good: Body, model: str, *, raw: bool) -> ModelInferRequest:
    """A JSON request as a gRPC message; with `raw` its tensors lie in `raw_input_contents`."""
    message = ModelInferRequest(model_name=model)
    for tensor in good["inputs"]:
        made = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if raw:
            message.raw_input_contents.append(to_binary(tensor))
        elif tensor["datatype"] == "BYTES":
            made.contents.bytes_contents.extend(value.encode() for value in tensor["data"])
        else:
            made.contents.fp64_contents.extend(tensor["data"])
    return message


def to_binary(tensor: Body) -> bytes:
    """A tensor's data as the protocol's binary extension has them: little endian, BYTES each after its length."""
    if tensor["datatype"] == "BYTES":
        texts = [value.encode() for value in tensor["data"]]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.asarray(tensor["data"], "<f8").tobytes()


def binary_request(good: Body) -> tuple[bytes, bytes]:
    """Header (JSON) and tensors of a JSON request in the binary extension."""
    header: Body = {"inputs": []}
    parts = []
    for tensor in good["inputs"]:
        parts.append(to_binary(tensor))
        described = {key: tensor[key] for key in ("name", "shape", "datatype")}
        header["inputs"].append({**described, "parameters": {"binary_data_size": len(parts[-1])}})
    return json.dumps(header).encode(), b"".join(parts)


def wire(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole request that asks for the connection to be closed after it."""
    lines = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body


def _post(kind: str, model: str, body: bytes, **headers: str) -> Odd:
    lines = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return Odd(kind=kind, wire=wire("POST", f"/v2/models/{model}/infer", body, lines))


def _tree(chance: random.Random, good: Body, model: str) -> Odd:
    """JSON whose nodes were replaced, dropped, repeated, wrapped or exchanged."""
    for _ in range(chance.randint(1, 4)):
        nodes = list(_nodes(good))
        holder, key = chance.choice(nodes)
        match chance.randrange(6):
            case 0 | 1:
                holder[key] = _odd(chance)
            case 2:
                del holder[key]
            case 3 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 4:
                holder[key] = chance.choice(([holder[key]], {"data": holder[key]}, [holder[key]] * 3))
            case _:
                other, place = chance.choice(nodes)
                holder[key] = copy.deepcopy(other[place]) if _has(other, place) else _odd(chance)
        if not good:
            break
    return _post("tree", model, json.dumps(good).encode())


def _tensors(chance: random.Random, good: Body, model: str) -> Odd:
    """Tensors that are whole in form, and wrong, odd or large in shape, type or values."""
    for tensor in good["inputs"]:
        if chance.random() < 0.5:
            continue
        count = chance.choice((0, 1, len(tensor["data"]), chance.randint(0, 40), 500))
        values = [*tensor["data"], *ODD] if chance.random() < 0.3 else tensor["data"]
        tensor["data"] = [chance.choice(values) for _ in range(count)]
        tensor["shape"] = chance.choice(([count], [count], [count, 1], [1], [], [-1], [2**62, 4], [count + 1], ["2"]))
        if chance.random() < 0.2:
            tensor["datatype"] = chance.choice(DATATYPES)
    chance.shuffle(good["inputs"])
    return _post("tensors", model, json.dumps(good).encode())


def _bytes(chance: random.Random, good: Body, model: str) -> Odd:
    """A good body with bytes flipped, cut out, put in or cut off; or no text at all."""
    body = json.dumps(good).encode()
    if chance.random() < 0.1:
        body = chance.choice((b"\xff\xfe" + body.decode().encode("utf-16-le"), b"[" * 50_000, chance.randbytes(300)))
    return _post("bytes", model, _mutated(chance, body), Content_Type=chance.choice(CONTENT_TYPES))


def _binary(chance: random.Random, good: Body, model: str) -> Odd:
    """Binary tensors whose header, sizes or length prefixes do not say what is there."""
    header, tensors = binary_request(good)
    described = json.loads(header)
    for tensor in described["inputs"]:
        if chance.random() < 0.03:
            tensor["parameters"]["binary_data_size"] = chance.choice((0, -1, 1, 3, 2**40, None, "8", 1.5, True, [4]))
        if chance.random() < 0.03:
            tensor["shape"] = chance.choice(([0], [2], [10**6], [-1], [2**62], [], [1, 1], [True]))
        if chance.random() < 0.02:
            tensor["datatype"] = chance.choice(DATATYPES)
        if chance.random() < 0.02:
            tensor["data"] = _odd(chance)
    if chance.random() < 0.3:
        outputs = ({"name": "probability", "parameters": {"binary_data": True}}, {"name": "x"}, 3, {"parameters": 1})
        described["outputs"] = [chance.choice(outputs)]
    header = json.dumps(described).encode()
    length = len(header)
    told = length if chance.random() < 0.7 else chance.choice((length + 1, 0, -5, 10**9, "x", "1_0", "", "٣"))
    if chance.random() < 0.3:
        tensors = _mutated(chance, tensors)
    kind = chance.choice(("application/octet-stream", "application/octet-stream", "application/json"))
    return _post("binary", model, header + tensors, Content_Type=kind, Inference_Header_Content_Length=str(told))


def _paths(chance: random.Random, good: Body, model: str) -> Odd:
    """Other addresses and methods."""
    parts = ["v1", "v2", "models", model, "infer", "ready", "health", "live", "versions", "1", "repository", "index"]
    parts += ["load", "unload", f"{model}:predict", "metrics", "docs", "openapi.json", "..", "%00", "%ff", "a" * 3000]
    known = [f"/v2/models/{model}{end}" for end in ("", "/ready", "/infer", "/generate", "/versions/1/infer")]
    known += [
        "/",
        "/v2",
        "/v2/health/ready",
        "/v2/models",
        "/metrics",
        "/openapi.json",
        "*",
        "//",
        "/v2/repository/index",
    ]
    known += [f"/v2/repository/models/{model}/{verb}" for verb in ("load", "unload")]
    known += [f"/v1/models/{model}:{verb}" for verb in ("predict", "explain")]
    path = chance.choice((chance.choice(known), "/" + "/".join(chance.choices(parts, k=chance.randint(1, 6)))))
    path += chance.choice(("", "", "?", "?a=1&a=2", "?" + "q" * 2000, "#x", "/"))
    body = chance.choice((b"", b"{}", b"null", json.dumps(good).encode()))
    kind = chance.choice(CONTENT_TYPES)
    return Odd(kind="paths", wire=wire(chance.choice(METHODS), path, body, {"Content-Type": kind}))


def _headers(chance: random.Random, good: Body, model: str) -> Odd:
    """A good body below headers that say something else about it."""
    odd = {
        "Content-Type": chance.choice(CONTENT_TYPES),
        "Content-Encoding": chance.choice(("gzip", "br", "identity", "x")),
        "Accept": chance.choice(("text/html", "*/*;q=x", "", "application/octet-stream")),
        "Accept-Encoding": chance.choice(("gzip", "*;q=0", "")),
        "Inference-Header-Content-Length": chance.choice(("0", "1", "-1", "99999999999999999999", "a")),
        "Expect": chance.choice(("100-continue", "200-ok")),
        "Upgrade": chance.choice(("websocket", "h2c")),
        "Traceparent": "\xff",
        "X-Request-Id": "\u00e9" * 500,
        "ce-specversion": "1.0",
        "ce-id": "",
        "Authorization": "Bearer " + "a" * 5000,
        "Range": "bytes=0-1",
        "Host": chance.choice(("", "\xff", "a" * 500)),
    }
    chosen = {name: odd[name] for name in chance.sample(list(odd), chance.randint(1, 4))}
    return Odd(
        kind="headers",
        wire=wire("POST", f"/v2/models/{model}/infer", json.dumps(good).encode(), chosen),
        framed="Upgrade" not in chosen and "Host" not in chosen and "Expect" not in chosen,
    )


def _framing(chance: random.Random, good: Body, model: str) -> Odd:
    """What is no HTTP, or lies about where it ends."""
    body = json.dumps(good).encode()
    path = f"/v2/models/{model}/infer"
    length = len(body)
    lengths = (length + 7, length - 7, 10**12, -1, "x", "", "1e3", f"{length}, {length}", f" {length} ", "0x10", 10**25)
    whole = wire("POST", path, body, {"Content-Type": "application/json"})
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    made = (
        wire("POST", path, body, {"Content-Length": str(chance.choice(lengths))}),
        wire("POST", path, body, {"Content-Length": f"{length}\r\nContent-Length: {length + 1}"}),
        wire("POST", path, b"5\r\nhello\r\n0\r\n\r\n", chunked),
        wire("POST", path, b"zz\r\n" + body, {"Transfer-Encoding": "chunked"}),
        wire("POST", path, b"ffffffffffffffff\r\n" + body, {"Transfer-Encoding": "chunked"}),
        whole[: chance.randint(1, len(whole) - 1)],
        whole.replace(b"HTTP/1.1", chance.choice((b"HTTP/9.9", b"HTTP/1.0", b"HTTP/2", b"", b"SMTP"))),
        whole.replace(b"\r\n", b"\n"),
        wire("POST", path, body, {f"X-{'a' * 70_000}": "b"}),
        wire("POST", path, body, {f"X-{i}": "b" for i in range(2000)}),
        wire("POST", "/" + "a" * 100_000, body, {}),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200),
        chance.randbytes(chance.randint(1, 2000)),
        whole + whole[: chance.randint(0, len(whole))],
        _mutated(chance, whole),
    )
    return Odd(kind="framing", wire=chance.choice(made), framed=False)


_MAKERS: dict[str, tuple[float, Callable[[random.Random, Body, str], Odd]]] = {
    "tree": (25, _tree),
    "tensors": (25, _tensors),
    "bytes": (15, _bytes),
    "binary": (15, _binary),
    "paths": (8, _paths),
    "headers": (6, _headers),
    "framing": (6, _framing),
}
"""Share in a hundred requests, and maker, by kind."""


def _lie_in_rpc(chance: random.Random, message: ModelInferRequest) -> None:
    tensor = chance.choice(message.inputs) if message.inputs else message.inputs.add(name="device")
    match chance.randrange(9):
        case 0:
            message.model_name = chance.choice(("", "other", "a" * 1000, "\x00"))
        case 1:
            tensor.name = chance.choice(("", "colour", "label", "item_id", "\U0001f600"))
        case 2:
            tensor.datatype = chance.choice(DATATYPES)
        case 3:
            tensor.shape[:] = chance.choice(([], [-1], [0], [2**62, 2**62], [1, 1], [10**6]))
        case 4:
            tensor.contents.fp64_contents.extend([float("nan"), float("inf"), 1e308])
        case 5:
            tensor.contents.bytes_contents.extend([b"\xff\xfe", b"", b"x" * 5000, b"[1, {}]"])
        case 6:
            message.raw_input_contents.append(chance.randbytes(chance.randint(0, 50)))
        case 7:
            del message.inputs[chance.randrange(len(message.inputs)) :]
        case 8:
            message.id = chance.choice(("", "\x00", "i" * 100_000))


def _odd(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(ODD))


def _nodes(tree: Any) -> Any:
    """(holder, key) of everything below the root."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _nodes(tree[key])


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _mutated(chance: random.Random, data: bytes) -> bytes:
    """`data` with one to eight places flipped, cut out, put in, repeated or cut off."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(made) + 1)
        size = chance.choice((1, 1, 2, 8, 100))
        match chance.randrange(5):
            case 0:
                made[place : place + 1] = chance.randbytes(1)
            case 1:
                del made[place : place + size]
            case 2:
                made[place:place] = chance.randbytes(size)
            case 3:
                made[place:place] = made[place : place + size]
            case 4 if chance.random() < 0.2:
                del made[place:]
    return bytes(made)
