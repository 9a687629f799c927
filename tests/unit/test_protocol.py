"""Requests to columns: what is read, what is refused, and that the refusal names the input."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.components.data.schema import Schema
from narrowcast.components.serve.protocol import MAX_CANDIDATES, RequestError, parse, signature, to_tensors
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


def ranking(*others):
    return [tensor("user_id", ["7"]), tensor("item_id", ["1", "2", "3"]), *others]


def refusal(schema, tensors) -> str:
    with pytest.raises(RequestError) as caught:
        parse(schema, tensors)
    return str(caught.value)


def test_one_value_is_repeated_and_nullable_context_is_missing(tiny_schema):
    request = parse(tiny_schema, ranking(tensor("device", ["tv"])))
    assert request.num_candidates == 3
    assert request.columns == {
        "user_id": ["7"] * 3,
        "item_id": ["1", "2", "3"],
        "device": ["tv"] * 3,
        "price": [None] * 3,
    }
    left = request.to_look_up(tiny_schema)
    assert {"age", "city", "kind", "tags", "history", "user_events", "item_click_rate"} <= set(left)
    assert not {"user_id", "item_id", "device", "price"} & set(left)


def test_context_may_have_a_value_a_candidate_and_integers_are_ids(tiny_schema):
    tensors = [tensor("user_id", [7], "INT64"), tensor("item_id", [1, 2], "INT32"), tensor("device", ["tv", "phone"])]
    request = parse(tiny_schema, [*tensors, tensor("price", [3, None], "INT64"), tensor("tags", ['["a", "b"]'])])
    assert request.columns["user_id"] == ["7", "7"]
    assert request.columns["item_id"] == ["1", "2"]
    assert request.columns["price"] == [3.0, None]
    assert request.columns["tags"] == [["a", "b"]] * 2


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
    assert request.columns == {"site": ["a", "b"], "hour": [1.0, 1.0], "words": [None, None]}
    assert request.to_look_up(KEYLESS) == ()
    assert "missing input 'hour'" in refusal(KEYLESS, tensors[:1])
    assert "'site' has 2 values for 3 candidates" in refusal(KEYLESS, [tensors[0], tensor("hour", [1, 2, 3], "INT8")])


def test_metadata_lists_every_input(tiny_schema):
    described = {entry["name"]: entry for entry in signature(tiny_schema)}
    assert tuple(described) == tiny_schema.input_names
    assert described["price"] == {"name": "price", "datatype": "FP64", "shape": [-1]}
    assert described["user_id"]["shape"] == [1]


text = st.text(st.characters(codec="utf-8"), min_size=1)


@given(
    rows=st.lists(
        st.tuples(text, st.floats(allow_nan=False, allow_infinity=False), st.none() | st.lists(text)), min_size=1
    )
)
def test_tensors_and_columns_are_inverse(rows):
    site, hour, words = (list(column) for column in zip(*rows, strict=True))
    columns = {"site": site, "hour": hour, "words": words}
    sent = json.loads(json.dumps(to_tensors(KEYLESS, columns)))
    assert parse(KEYLESS, sent).columns == {**columns, "words": [value or [] for value in words]}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


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
    assert {len(values) for values in request.columns.values()} == {request.num_candidates}


@pytest.mark.parametrize("text", ["cheap", "inf", "-Infinity", "1e999"])
def test_text_of_the_command_line_that_is_no_number(tiny_schema, text):
    assert _value(tiny_schema, "price", "2.5") == 2.5
    with pytest.raises(NarrowcastError, match=r"'price' is .*give a finite number"):
        _value(tiny_schema, "price", text)
