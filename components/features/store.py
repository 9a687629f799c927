"""A feature store folder: written, filled and opened."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb
from feast import FeatureStore

from narrowcast import feature_repo
from narrowcast.components.data.schema import Schema
from narrowcast.components.features.sources import write_sources
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, definitions, views

CONFIG, SCHEMA = "feature_store.yaml", "schema.yaml"
TEMPLATES = Path(str(feature_repo.__file__)).parent


def create_store(connection: duckdb.DuckDBPyConnection, schema: Schema, folder: Path) -> FeatureStore:
    """Write sources, schema and definitions into an empty folder and apply them; the online store is still empty."""
    config = (TEMPLATES / CONFIG).read_text().replace("project: narrowcast", f'project: "{schema.name}"')
    (folder / CONFIG).write_text(config)
    (folder / SCHEMA).write_text(schema.to_text())
    shutil.copyfile(TEMPLATES / "definitions.py", folder / "definitions.py")
    write_sources(connection, schema, folder)
    store = open_store(folder)
    with _quiet():
        store.apply(list(definitions(schema).values()))
    return store


def open_store(folder: Path) -> FeatureStore:
    """The store in a folder, wherever it was written. Raises NarrowcastError where there is none."""
    for name in (CONFIG, SCHEMA):
        if not (folder / name).is_file():
            raise NarrowcastError(f"{folder} holds no feature store ({name} is missing): run the features step first")
    return FeatureStore(repo_path=str(folder.resolve()))


def materialise(store: FeatureStore, schema: Schema, end: datetime) -> None:
    """Write every entity's latest state up to `end` to the online store, through Feast."""
    if views(schema):
        with _quiet():
            store.materialize(start_date=EPOCH, end_date=end)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Feast's coloured progress and the deprecations inside ibis: neither is for our user."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
