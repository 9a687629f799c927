"""Bodies of the v2 protocol over HTTP: JSON, binary tensors, and what is neither."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse, RequestedOutput

from narrowcast.components.serve.predictor import Answer, Asked
from narrowcast.components.serve.protocol import RequestError
from narrowcast.components.serve.rest import read_request, write_answer

SCORES = np.array([0.25, 1 / 3, 1e-9], np.float32)
ANSWER = Answer(version="abc", probability_M=SCORES, parameters={"unknown_item": '["x"]'})


def test_json_answers_read_back_to_the_same_float32():
    content, json_length = write_answer("tiny", Asked(id="7", tensors=[]), ANSWER)
    message = json.loads(content)
    assert json_length is None
    np.testing.assert_array_equal(np.array(message["outputs"][0].pop("data"), np.float32), SCORES)
    assert message == {
        "model_name": "tiny",
        "model_version": "abc",
        "id": "7",
        "parameters": {"unknown_item": '["x"]'},
        "outputs": [{"name": "probability", "shape": [3], "datatype": "FP32"}],
    }


def test_binary_answers_are_read_by_kserves_client():
    content, json_length = write_answer("tiny", Asked(id="7", tensors=[], binary=True), ANSWER)
    response = InferResponse.from_bytes(content, json_length)
    np.testing.assert_array_equal(response.outputs[0].as_numpy(), SCORES)
    assert json.loads(content[:json_length])["model_version"] == "abc"


def test_binary_requests_of_kserves_client_are_read():
    inputs = [InferInput("item", [2], "BYTES"), InferInput("price", [2], "FP32"), InferInput("place", [1], "INT64")]
    inputs[0].set_data_from_numpy(np.array(["a", "bä"], dtype=object))
    inputs[1].set_data_from_numpy(np.array([1, 2], np.float32))
    inputs[2].set_data_from_numpy(np.array([5]), binary_data=False)
    wanted = [RequestedOutput("probability", {"binary_data": True})]
    body, length = InferRequest("tiny", inputs, request_id="7", request_outputs=wanted).to_rest()
    asked = read_request(body, str(length), "other")
    assert (asked.id, asked.binary) == ("7", True)
    assert [tensor["data"] for tensor in asked.tensors] == [
        b"\1\0\0\0a\3\0\0\0b\xc3\xa4",
        np.array([1, 2], "<f4").tobytes(),
        [5],
    ]


@pytest.mark.parametrize(
    ("message", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "probability"}]}, False),
        ({"outputs": [{"name": "probability", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "probability", "parameters": {"binary_data": False}}],
            },
            False,
        ),
    ],
)
def test_the_request_says_whether_the_answer_is_binary(message, binary):
    asked = read_request(json.dumps({"inputs": [], **message}).encode(), None, "7")
    assert asked.binary is binary
    assert asked.id == "7"


def one(**changed):
    return {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1.0], **changed}]}


@pytest.mark.parametrize(
    ("body", "header", "reason"),
    [
        (b"", None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        ([], None, "(request: a mapping is required)"),
        ({}, None, "(inputs: a list"),
        ({"inputs": [1]}, None, "(inputs.0: a mapping"),
        (one(name=None), None, "(inputs.0.name: text"),
        (one(datatype=5), None, "(inputs.0.datatype: text"),
        (one(shape=5), None, "(inputs.0.shape: a list of numbers"),
        (one(shape=[True]), None, "(inputs.0.shape: a list of numbers"),
        (one(shape=[1.0]), None, "(inputs.0.shape: a list of numbers"),
        (one(parameters=[1]), None, "(inputs.0.parameters: a mapping"),
        (one(parameters={"binary_data_size": 4}), None, "binary_data_size of 4 where 0 bytes are left"),
        (one(parameters={"binary_data_size": -1}), None, "binary_data_size of -1"),
        (one(parameters={"binary_data_size": "x"}), None, "binary_data_size of 'x'"),
        ({"inputs": [], "id": 5}, None, "id is not printable"),
        ({"inputs": [], "id": "a\nb"}, None, "id is not printable"),
        ({"inputs": [], "outputs": 5}, None, "(outputs: a list"),
        ({"inputs": [], "outputs": [{"name": "logit"}]}, None, "no output 'logit'"),
        ({"inputs": [], "parameters": 5}, None, "(parameters: a mapping"),
        ({"inputs": []}, "x", "is 'x' for a body of 14 bytes"),
        ({"inputs": []}, "-1", "is '-1'"),
        ({"inputs": []}, "15", "is '15'"),
        ({"inputs": []}, "9" * 5000, "for a body of 14 bytes"),
        (b'{"inputs": []}abc', "14", "3 bytes follow the last input"),
    ],
)
def test_what_is_no_request_is_refused(body, header, reason):
    with pytest.raises(RequestError) as caught:
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), header, "7")
    assert reason in str(caught.value)


def test_not_a_number_is_left_for_its_input_to_be_named():
    asked = read_request(json.dumps(one(data=[float("nan")])).encode(), None, "7")
    assert np.isnan(asked.tensors[0]["data"]).all()


@settings(deadline=None)
@given(st.binary(max_size=60), st.none() | st.text(max_size=4) | st.integers(0, 70).map(str))
def test_any_bytes_are_read_or_refused(body, header):
    for text in (body, b'{"inputs": [' + body + b"]}"):
        try:
            read_request(text, header, "7")
        except RequestError as error:
            assert str(error)  # noqa: PT017
