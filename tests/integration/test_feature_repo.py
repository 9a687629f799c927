"""The feature store folder is an ordinary Feast repository, and its offline store an exact one."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore

from narrowcast.components.features.build import build_features
from narrowcast.components.features.store import open_store


@pytest.fixture(scope="module")
def store_folder(tiny_dataset, tiny_schema, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("repo")
    build_features(tiny_dataset, tiny_schema, 0, target / "frame", target / "store")
    return target / "store"


def feast(folder: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_feast_command_applies_lists_and_materialises_it(store_folder, tiny_schema, tmp_path):
    repo = tmp_path / "repo"
    shutil.copytree(store_folder, repo)
    before = open_store(repo).get_online_features(["user_statistics:user_events"], {"user_id": ["1", "2"]}).to_dict()
    for state in ("registry.db", "online.db"):
        (repo / state).unlink()
    feast(repo, "apply")
    assert tiny_schema.feature_service in feast(repo, "feature-services", "list")
    feast(repo, "materialize", "1800-01-01T00:00:00", "2100-01-01T00:00:00")
    after = open_store(repo).get_online_features(["user_statistics:user_events"], {"user_id": ["1", "2"]}).to_dict()
    assert before == after
    assert None not in after["user_events"]


def test_the_join_equals_that_of_feast_s_own_duckdb_store(store_folder, tiny_schema):
    store = open_store(store_folder)
    rng = np.random.default_rng(0)
    rows = 500
    entities = pd.DataFrame(
        {
            "row_id": np.arange(rows),
            "user_id": rng.choice([*map(str, range(70)), None], rows),
            "item_id": rng.integers(0, 45, rows).astype(str),
            "event_timestamp": pd.to_datetime(1_000_000 + rng.integers(-10, 1000, rows) * 50, unit="s", utc=True),
        }
    )
    service = store.get_feature_service(tiny_schema.feature_service)
    ours = store.get_historical_features(entities.copy(), service).to_df().sort_values("row_id", ignore_index=True)
    views = [store.get_feature_view(p.name) for p in service.feature_view_projections]
    references = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
    with contextlib.chdir(store_folder):
        job = DuckDBOfflineStore.get_historical_features(
            store.config, views, references, entities.copy(), store.registry, store.project
        )
        theirs = job.to_df().sort_values("row_id", ignore_index=True)
    assert len(ours) == rows
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs, check_dtype=False)


def test_full_feature_names_are_prefixed_by_the_view(store_folder):
    store = open_store(store_folder)
    entities = pd.DataFrame({"user_id": ["1"], "event_timestamp": [pd.Timestamp("2100-01-01", tz="UTC")]})
    found = store.get_historical_features(entities, ["user_attributes:age"], full_feature_names=True).to_df()
    assert list(found.columns) == ["user_id", "event_timestamp", "user_attributes__age"]
