"""Requests to columns: what is read, what is refused, and that the refusal names the input."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve.protocol.infer_type import serialize_byte_tensor

from narrowcast.components.data.schema import Schema
from narrowcast.components.serve.protocol import (
    BINARY,
    MAX_CANDIDATES,
    RequestError,
    RequestReader,
    _categories,
    _category,
    _number,
    _numbers,
    _one_by_one,
    signature,
    to_tensors,
)
from narrowcast.components.serve.rank import _value
from narrowcast.errors import NarrowcastError

KEYLESS = Schema.from_text(
    """
name: keyless
sources: {events: {path: events.csv, format: csv}}
label: {column: click}
fields:
  - {name: site, type: categorical}
  - {name: hour, type: numeric}
  - {name: words, type: sequence, separator: " ", nullable: true}
"""
)


def tensor(name, data, datatype="BYTES", shape=None):
    return {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data}


def parse(schema, tensors):
    return RequestReader(schema).read(tensors)


def plain(columns):
    """Columns as lists."""
    return {name: list(values) for name, values in columns.items()}


def ranking(*others):
    return [tensor("user_id", ["7"]), tensor("item_id", ["1", "2", "3"]), *others]


def refusal(schema, tensors) -> str:
    with pytest.raises(RequestError) as caught:
        parse(schema, tensors)
    return str(caught.value)


def test_one_value_stands_for_all_and_nullable_context_is_missing(tiny_schema):
    request = parse(tiny_schema, ranking(tensor("device", ["tv"])))
    assert request.num_candidates == 3
    assert request.columns == {"user_id": ["7"], "item_id": ["1", "2", "3"], "device": ["tv"], "price": [None]}
    left = RequestReader(tiny_schema).to_look_up(request)
    assert {"age", "city", "kind", "tags", "history", "user_events", "item_click_rate"} <= set(left)
    assert not {"user_id", "item_id", "device", "price"} & set(left)


def test_context_may_have_a_value_a_candidate_and_integers_are_ids(tiny_schema):
    tensors = [tensor("user_id", [7], "INT64"), tensor("item_id", [1, 2], "INT32"), tensor("device", ["tv", "phone"])]
    request = parse(tiny_schema, [*tensors, tensor("price", [3, None], "INT64"), tensor("tags", ['["a", "b"]'])])
    assert request.columns["user_id"] == ["7"]
    assert request.columns["item_id"] == ["1", "2"]
    assert request.columns["price"] == [3.0, None]
    assert request.columns["tags"] == [["a", "b"]]


def test_one_user_named_for_every_candidate_is_one(tiny_schema):
    same = [tensor("user_id", ["7", "7"]), tensor("item_id", ["1", "2"]), tensor("device", ["tv"])]
    assert parse(tiny_schema, same).columns["user_id"] == ["7"]


@pytest.mark.parametrize(
    ("bad", "name", "reason"),
    [
        (tensor("price", [math.nan], "FP64"), "price", "NaN"),
        (tensor("price", [math.inf], "FP32"), "price", "infinite"),
        (tensor("price", [10**400], "INT64"), "price", "infinite"),
        (tensor("price", ["3.5"], "FP64"), "price", "is a string"),
        (tensor("price", [True], "FP64"), "price", "is a boolean"),
        (tensor("price", ["3.5"]), "price", "datatype BYTES"),
        (tensor("price", [[1.0]], "FP64"), "price", "is a list"),
        (tensor("price", [1.0, 2.0], "FP64"), "price", r"must be [1] or [3]"),
        (tensor("price", [1.0], "FP64", shape=[1, 1]), "price", "shape [1, 1]"),
        (tensor("price", [1.0], "FP64", shape=[2]), "price", "shape [2]"),
        (tensor("price", [1.0], "FP64", shape=[]), "price", "shape []"),
        (tensor("price", [], "FP64"), "price", "empty"),
        (tensor("price", b"", "FP64", shape=[0]), "price", "empty"),
        (tensor("price", bytes(7), "FP64", shape=[1]), "price", "7 bytes of data where 1 values of FP64 take 8"),
        (tensor("price", struct.pack("<d", math.nan), "FP64", shape=[1]), "price", "value 0 is NaN"),
        (tensor("price", struct.pack("<e", math.inf), "FP16", shape=[1]), "price", "value 0 is infinite"),
        (tensor("city", b"\2\0\0\0a", "BYTES", shape=[1]), "city", "does not hold 1 texts"),
        (tensor("city", b"\1\0\0\0ab", "BYTES", shape=[1]), "city", "does not hold 1 texts"),
        (tensor("city", b"\xff\xff\xff\xffa", "BYTES", shape=[1]), "city", "does not hold 1 texts"),
        (tensor("city", b"\1\0\0\0\xff", "BYTES", shape=[1]), "city", "Unicode"),
        (tensor("city", b"a", "FP32", shape=[1]), "city", "no list"),
        (tensor("price", {"a": 1}, "FP64", shape=[1]), "price", "no list"),
        (tensor("age", [None], "FP64"), "age", "null"),
        (tensor("city", [1.5], "FP64"), "city", "datatype FP64"),
        (tensor("city", [b"x"]), "city", "bytes"),
        (tensor("city", ["\ud800"]), "city", "Unicode"),
        (tensor("tags", ["a|b"]), "tags", "JSON list"),
        (tensor("tags", ['{"a": 1}']), "tags", "JSON list"),
        (tensor("tags", ["[1.5]"]), "tags", "JSON list"),
        (tensor("tags", ["[" * 100_000]), "tags", "JSON list"),
        (tensor("tags", [["a"]]), "tags", "JSON list"),
        (tensor("prise", [1.0], "FP64"), "prise", "did you mean 'price'?"),
        (tensor("stars", [5], "INT64"), "stars", "unknown input"),
        (tensor("user_id", ["8"]), "user_id", "twice"),
    ],
)
def test_refusals_name_the_input(tiny_schema, bad, name, reason):
    sentence = refusal(tiny_schema, ranking(tensor("device", ["tv"]), bad))
    assert f"'{name}'" in sentence
    assert reason in sentence


def test_missing_inputs_are_named(tiny_schema):
    assert "missing input 'device'" in refusal(tiny_schema, ranking())
    assert "missing input 'item_id'" in refusal(tiny_schema, [tensor("user_id", ["1"]), tensor("device", ["tv"])])
    assert "missing input 'user_id'" in refusal(tiny_schema, [tensor("item_id", ["1"]), tensor("device", ["tv"])])
    assert "no inputs" in refusal(tiny_schema, [])


def test_number_of_candidates(tiny_schema):
    device = tensor("device", ["tv"])
    user = tensor("user_id", ["7"])
    most = [str(i) for i in range(MAX_CANDIDATES)]
    assert parse(tiny_schema, [user, device, tensor("item_id", most)]).num_candidates == MAX_CANDIDATES
    assert f"limit of {MAX_CANDIDATES}" in refusal(tiny_schema, [user, device, tensor("item_id", [*most, "x"])])
    assert "'item_id' is empty" in refusal(tiny_schema, [user, device, tensor("item_id", [])])


def test_several_users_need_every_input(tiny_schema):
    users = tensor("user_id", ["7", "8"])
    two = [users, tensor("item_id", ["1", "2"]), tensor("device", ["tv"])]
    assert "several users" in refusal(tiny_schema, two)
    given_too = [
        tensor(f.name, ["[]"] if f.type == "sequence" else [1.0 if f.type == "numeric" else "x"], kind)
        for f in tiny_schema.inputs
        if f.name not in ("user_id", "item_id", "device")
        for kind in ["FP64" if f.type == "numeric" else "BYTES"]
    ]
    assert parse(tiny_schema, [*two, *given_too]).columns["user_id"] == ["7", "8"]


def test_without_keys_every_input_is_given():
    tensors = [tensor("site", ["a", "b"]), tensor("hour", [1.0], "FP32")]
    request = parse(KEYLESS, tensors)
    assert plain(request.columns) == {"site": ["a", "b"], "hour": [1.0], "words": [None]}
    assert request.num_candidates == 2
    assert RequestReader(KEYLESS).to_look_up(request) == ()
    assert "missing input 'hour'" in refusal(KEYLESS, tensors[:1])
    assert "'site' has 2 values for 3 candidates" in refusal(KEYLESS, [tensors[0], tensor("hour", [1, 2, 3], "INT8")])


def test_metadata_lists_every_input(tiny_schema):
    described = {entry["name"]: entry for entry in signature(tiny_schema)}
    assert tuple(described) == tiny_schema.input_names
    assert described["price"] == {"name": "price", "datatype": "FP64", "shape": [-1]}
    assert described["user_id"]["shape"] == [1]


text = st.text(st.characters(codec="utf-8"), min_size=1)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(text, st.floats(allow_nan=False, allow_infinity=False), st.none() | st.lists(text)), min_size=1
    )
)
def test_tensors_and_columns_are_inverse(rows):
    site, hour, words = (list(column) for column in zip(*rows, strict=True))
    columns = {"site": site, "hour": hour, "words": words}
    sent = json.loads(json.dumps(to_tensors(KEYLESS, columns)))
    assert plain(parse(KEYLESS, sent).columns) == {**columns, "words": [value or [] for value in words]}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["site", "hour", "words", "x"]),
                "shape": st.lists(st.integers(), max_size=2) | st.just([1]),
                "datatype": st.sampled_from(["BYTES", "FP64", "INT64", "BOOL", "nonsense"]),
                "data": st.lists(anything, max_size=3) | anything,
            }
        ),
        max_size=4,
    )
)
def test_any_tensors_are_read_or_refused(tensors):
    try:
        request = parse(KEYLESS, tensors)
    except RequestError:
        return
    assert {len(values) for values in request.columns.values()} <= {1, request.num_candidates}


def packed(values):
    """The protocol's binary form of texts, as KServe's own client makes it."""
    return serialize_byte_tensor(np.array([value.encode() for value in values], dtype=object)).item()


@settings(deadline=None)
@given(st.lists(text, min_size=1), st.sampled_from(sorted(BINARY)), st.data())
def test_binary_values_are_the_listed_ones(site, datatype, data):
    kind = np.dtype(BINARY[datatype])
    some = st.integers(0, 100) if kind.kind in "iu" else st.floats(-100, 100, width=kind.itemsize * 8)
    hour = np.array(data.draw(st.lists(some, min_size=len(site), max_size=len(site))), kind)
    shape = [len(site)]
    listed = parse(KEYLESS, [tensor("site", site), tensor("hour", hour.tolist(), datatype)])
    binary = [tensor("site", packed(site), shape=shape), tensor("hour", hour.tobytes(), datatype, shape)]
    assert plain(parse(KEYLESS, binary).columns) == plain(listed.columns)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_binary_integers_are_ids(ids):
    sent = tensor("site", np.array(ids, "<u8").tobytes(), "UINT64", [len(ids)])
    assert parse(KEYLESS, [sent, tensor("hour", [1.0], "FP64")]).columns["site"] == [str(value) for value in ids]


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(-1, 5), st.sampled_from(["BYTES", "FP32", "INT64", "nonsense"]))
def test_any_binary_data_are_read_or_refused(data, length, datatype):
    valid = {"site": tensor("site", ["a"]), "hour": tensor("hour", [1.0], "FP64"), "words": tensor("words", ["[]"])}
    for name in valid:
        sent = [*(valid | {name: tensor(name, data, datatype, [length])}).values()]
        read = outcome(lambda: parse(KEYLESS, sent))  # noqa: B023
        assert f"'{name}'" in read if isinstance(read, str) else len(read.columns[name]) == length


@settings(deadline=None)
@given(st.lists(st.text() | st.integers() | st.none() | st.booleans() | st.floats()))
def test_values_read_at_once_are_those_read_one_by_one(values):
    for read, one in ((_categories, _category), (_numbers, _number)):
        field = KEYLESS.field("site" if one is _category else "hour")
        assert outcome(lambda: list(read(field, values))) == outcome(lambda: _one_by_one(field, values, one))  # noqa: B023


def outcome(call):
    try:
        return call()
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("text", ["cheap", "inf", "-Infinity", "1e999"])
def test_text_of_the_command_line_that_is_no_number(tiny_schema, text):
    assert _value(tiny_schema, "price", "2.5") == 2.5
    with pytest.raises(NarrowcastError, match=r"'price' is .*give a finite number"):
        _value(tiny_schema, "price", text)
