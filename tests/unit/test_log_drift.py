"""Drift from the training rows to logged requests: told where there is some, and only there."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from narrowcast.components.serve.request_log import RequestLog, logged_values
from narrowcast.components.validate.drift import measure_drift, measure_drift_to
from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.cli import app


def write_log(folder, schema, rows: pd.DataFrame, requests: int, candidates: int, **changes) -> None:
    """Logs rows of a frame as requests: a user's and a context's value once, the items' once a candidate."""
    rng = np.random.default_rng(0)
    values = {field.name: rows[field.name].tolist() for field in schema.inputs}
    log = RequestLog(folder, schema)
    for _ in range(requests):
        asked, offered = rng.integers(len(rows), size=1), rng.integers(len(rows), size=candidates)
        columns = {}
        for field in schema.inputs:
            change = changes.get(field.name, lambda value: value)
            columns[field.name] = [change(values[field.name][i]) for i in (offered if field.owner == "item" else asked)]
        log.write(columns, np.full(candidates, 0.5, np.float32), "v")
    log.close()
    assert log.written == requests


@pytest.fixture(scope="module")
def training(tiny_frame):
    frame = pd.read_parquet(tiny_frame / "frame.parquet")
    return frame[frame["split"] == "train"]


def drift(log, tiny_frame, schema):
    later = measure_drift_to(
        tiny_frame / "frame.parquet", lambda field: logged_values(log, field, schema=schema), schema
    )
    return {field.name: field for field in later}


def test_requests_like_the_training_rows_pass_and_shifted_ones_are_told(training, tiny_frame, tiny_schema, tmp_path):
    write_log(tmp_path / "same", tiny_schema, training, 500, 3)
    same = drift(tmp_path / "same", tiny_frame, tiny_schema)
    assert list(same) == sorted(tiny_schema.input_names)
    assert all(field.passed and field.psi < 0.1 for field in same.values())
    assert all(not field.unseen_share for field in same.values())
    changes = {
        "age": lambda age: age + 60,
        "device": lambda _: "watch",
        "kind": lambda _: "book",
        "item_id": lambda item: f"new{item}",
        "history": lambda _: [],
    }
    write_log(tmp_path / "other", tiny_schema, training, 500, 3, **changes)
    other = drift(tmp_path / "other", tiny_frame, tiny_schema)
    assert {name for name, field in other.items() if not field.passed} == set(changes)
    assert (other["device"].unseen_share, other["item_id"].unseen_share) == (1.0, 1.0)
    assert other["age"].ks > 0.8
    assert all(field.psi < 0.1 for name, field in other.items() if name not in changes)


def test_later_rows_of_the_frame_have_the_drift_of_the_frame(tiny_frame, tiny_schema):
    path = tiny_frame / "frame.parquet"
    frame = pd.read_parquet(path)
    later = frame[frame["split"] != "train"]
    values = {f.name: pa.array(later[f.name], from_pandas=True) for f in tiny_schema.inputs}
    assert list(measure_drift_to(path, lambda field: values[field.name], tiny_schema)) == measure_drift(
        path, tiny_schema
    )


def test_a_frame_without_training_rows_is_told(tiny_frame, tiny_schema, tmp_path):
    frame = pd.read_parquet(tiny_frame / "frame.parquet")
    frame[frame["split"] != "train"].to_parquet(tmp_path / "frame.parquet")
    with pytest.raises(NarrowcastError, match="no training rows"):
        list(measure_drift_to(tmp_path / "frame.parquet", lambda field: pa.nulls(0), tiny_schema))


def test_the_verb_tells_in_a_table_in_json_and_by_its_status(training, tiny_frame, tiny_schema, tmp_path):
    write_log(tmp_path / "log", tiny_schema, training, 200, 3, device=lambda _: "watch")
    command = ["data", "drift", "--log", str(tmp_path / "log"), "--frame", str(tiny_frame)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert "200 requests" in shown.stdout
    (device,) = (line for line in shown.stdout.splitlines() if "device" in line)
    assert "over" in device
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["requests"] == 200
    assert [field["name"] for field in told["fields"] if not field["passed"]] == ["device"]
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 1
    assert isinstance(strict.exception, NarrowcastError)
    assert "over the schema's limit in device" in str(strict.exception)
