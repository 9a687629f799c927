"""A tiny data set with something to learn, and each step's artifact made from it once a session."""

import urllib.request
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from narrowcast.components.data.schema import Schema

TINY_SCHEMA = """
name: tiny
sources:
  events: {path: events.csv, format: csv}
  users: {path: users.csv, format: csv}
  items: {path: items.csv, format: csv}
user: user_id
item: item_id
timestamp: {column: time, unit: s}
label: {column: stars, at_least: 4}
leakage: [stars, watch_seconds]
fields:
  - {name: user_id, type: categorical, owner: user}
  - {name: age, type: numeric, owner: user, min: 0, max: 120}
  - {name: city, type: categorical, owner: user, nullable: true}
  - {name: item_id, type: categorical, owner: item}
  - {name: kind, type: categorical, owner: item, values: [film, song, book]}
  - {name: tags, type: sequence, owner: item, separator: "|", max_length: 3}
  - {name: device, type: categorical}
  - {name: price, type: numeric, nullable: true, min: 0, transform: log}
history: {max_length: 5}
checks: {row_key: [user_id, item_id, time], label_rate: [0.1, 0.9], max_drift: 5.0}
"""


def write_tiny(folder: Path, rows: int = 2000, users: int = 60, items: int = 40, seed: int = 0) -> None:
    """Raw files of `TINY_SCHEMA`: users like some kinds more than others, so that a model can learn."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = rng.choice(["film", "song", "book"], items)
    taste = rng.normal(0, 1.5, (users, 3))
    appeal = rng.normal(0, 1, items)
    user = rng.integers(0, users, rows)
    item = np.minimum(rng.zipf(1.3, rows) - 1, items - 1)
    kind_index = np.array([["film", "song", "book"].index(k) for k in kinds])
    logit = taste[user, kind_index[item]] + appeal[item]
    click = rng.random(rows) < 1 / (1 + np.exp(-logit))
    pd.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "time": 1_000_000 + np.arange(rows) // 2 * 50,  # every two events share a second
            "device": rng.choice(["phone", "tv"], rows),
            "price": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(1, 1, rows).round(2)),
            "stars": np.where(click, 5, 2),
            "watch_seconds": rng.integers(0, 100, rows),
        }
    ).drop_duplicates(["user_id", "item_id", "time"]).to_csv(folder / "events.csv", index=False)
    pd.DataFrame(
        {
            "user_id": np.arange(users),
            "age": rng.integers(10, 80, users),
            "city": [None if i % 7 == 0 else f"city{i % 5}" for i in range(users)],
        }
    ).to_csv(folder / "users.csv", index=False)
    pd.DataFrame(
        {
            "item_id": np.arange(items),
            "kind": kinds,
            "tags": ["|".join(rng.choice(list("abcdefg"), rng.integers(1, 5), replace=False)) for _ in range(items)],
        }
    ).to_csv(folder / "items.csv", index=False)


def reference_frame(dataset: Path, schema: Schema) -> pd.DataFrame:
    """The training frame by its definition, row by row: what the feature store's join must equal."""
    events = pd.read_parquet(dataset / "events.parquet").sort_values(["event_timestamp", "row_id"], kind="stable")
    frame = events.merge(pd.read_parquet(dataset / "users.parquet"), on=schema.user, how="left")
    frame = frame.merge(pd.read_parquet(dataset / "items.parquet"), on=schema.item, how="left")
    seen = {"user": defaultdict(list), "item": defaultdict(list)}
    history: dict[str, deque] = defaultdict(lambda: deque(maxlen=schema.history.max_length))
    columns = defaultdict(list)
    for time, group in events.groupby("event_timestamp", sort=True):
        for event in group.to_dict("records"):
            for owner, key in (("user", schema.user), ("item", schema.item)):
                past = seen[owner][event[key]]
                columns[f"{owner}_events"].append(float(len(past)))
                columns[f"{owner}_click_rate"].append((sum(label for _, label in past) + 5) / (len(past) + 10))
                columns[f"{owner}_as_of"].append(past[-1][0] if past else pd.NaT)
            columns["history"].append(list(history[event[schema.user]]))
        for event in group.to_dict("records"):
            seen["user"][event[schema.user]].append((time, event["label"]))
            seen["item"][event[schema.item]].append((time, event["label"]))
            if event["label"] or not schema.history.positive_only:
                history[event[schema.user]].append(event[schema.item])
    frame = frame.assign(**columns)
    cuts = frame["event_timestamp"].quantile([0.8, 0.9], interpolation="lower").to_list()
    frame["split"] = np.select(
        [frame["event_timestamp"] <= cuts[0], frame["event_timestamp"] <= cuts[1]], ["train", "validation"], "test"
    )
    row_key_only = set(schema.checks.row_key or ()) - set(schema.input_names)
    return frame.drop(columns=sorted(row_key_only)).reset_index(drop=True)


@pytest.fixture(scope="session")
def tiny_schema() -> Schema:
    return Schema.from_text(TINY_SCHEMA)


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "raw"
    write_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_raw, tiny_schema, tmp_path_factory) -> Path:
    from narrowcast.components.data.ingest import ingest

    target = tmp_path_factory.mktemp("tiny") / "dataset"
    ingest(tiny_raw, tiny_schema, target)
    return target


@pytest.fixture(scope="session")
def tiny_frame(tiny_dataset, tiny_schema, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "frame"
    folder.mkdir()
    reference_frame(tiny_dataset, tiny_schema).to_parquet(folder / "frame.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def tiny_encoded(tiny_frame, tiny_schema, tmp_path_factory) -> Path:
    from narrowcast.components.data.encode import encode

    target = tmp_path_factory.mktemp("tiny") / "encoded"
    encode(tiny_frame, tiny_schema, target)
    return target


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a real S3 endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch) -> Iterator[str]:
    """Address of an empty bucket of the S3 endpoint, which the environment names."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="narrowcast")
    yield "s3://narrowcast"
    reset = urllib.request.Request(f"{s3_endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
