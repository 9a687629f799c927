"""A feature store folder: written, filled and opened."""

import contextlib
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import redis
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config

from narrowcast import feature_repo
from narrowcast.components.data.schema import Schema
from narrowcast.components.features.redis_store import UrlRedisOnlineStore, UrlRedisOnlineStoreConfig
from narrowcast.components.features.redis_url import PASSWORD, check_url
from narrowcast.components.features.sources import write_sources
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, definitions, views
from narrowcast.records import digest

CONFIG, SCHEMA = "feature_store.yaml", "schema.yaml"
TEMPLATES = Path(str(feature_repo.__file__)).parent
SQLITE = "type: sqlite\n  path: online.db"
END = datetime(2200, 1, 1, tzinfo=UTC)
"""After any event that ingestion lets pass."""


def create_store(
    connection: duckdb.DuckDBPyConnection, schema: Schema, folder: Path, online_store: str = ""
) -> FeatureStore:
    """Write sources, schema and definitions into an empty folder and apply them; the online store is still empty.

    `online_store`: the URL of a Redis, or empty for SQLite in the folder. The Feast project is named for the schema and
    the sources' content, so that in one Redis every version has keys of its own and equal ones share theirs.
    """
    if online_store:
        check_url(online_store)
    (folder / SCHEMA).write_text(schema.to_text())
    shutil.copyfile(TEMPLATES / "definitions.py", folder / "definitions.py")
    write_sources(connection, schema, folder)
    contents = "".join(digest(folder / name) for name in (SCHEMA, *(view.path for view in views(schema))))
    project = f"{schema.name}_{hashlib.md5(contents.encode(), usedforsecurity=False).hexdigest()[:12]}"
    config = (TEMPLATES / CONFIG).read_text().replace("project: narrowcast", f"project: {project}")
    if online_store:
        assert SQLITE in config
        redis_store = f"{UrlRedisOnlineStore.__module__}.{UrlRedisOnlineStore.__qualname__}"
        config = config.replace(SQLITE, f"type: {redis_store}\n  url: {json.dumps(online_store)}")
    (folder / CONFIG).write_text(config)
    store = open_store(folder)
    with _quiet(), redis_errors(store):
        store.apply(list(definitions(schema, project).values()))
    return store


def open_store(folder: Path) -> FeatureStore:
    """The store in a folder, wherever it was written. Raises NarrowcastError where there is none."""
    for name in (CONFIG, SCHEMA):
        if not (folder / name).is_file():
            raise NarrowcastError(f"{folder} holds no feature store ({name} is missing): run the features step first")
    return FeatureStore(repo_path=str(folder.resolve()))


def materialise(store: FeatureStore, schema: Schema, end: datetime) -> None:
    """Write every entity's latest state up to `end` to the online store, through Feast.

    Raises NarrowcastError where the online store is a Redis that does not answer.
    """
    if views(schema):
        with _quiet(), redis_errors(store):
            store.materialize(start_date=EPOCH, end_date=end)


def fill(folder: Path) -> bool:
    """Write the folder's entities to its Redis where they are not there (it was emptied, say); whether they were not.

    A SQLite store lies in the folder and has them. Raises NarrowcastError where Redis does not answer.
    """
    store, schema = open_store(folder), Schema.load(folder / SCHEMA)
    with redis_errors(store):
        missing = missing_view(store, folder, schema)
    if missing:
        materialise(store, schema, END)
    return missing is not None


def missing_view(store: FeatureStore, folder: Path, schema: Schema) -> str | None:
    """The first view whose last entity the store's Redis does not hold, which is the last one written there.

    Raises redis.RedisError where Redis does not answer.
    """
    if not in_redis(store):
        return None
    online = get_online_store_from_config(store.config.online_store)
    assert isinstance(online, UrlRedisOnlineStore)
    for view in views(schema):
        file = pq.ParquetFile(folder / view.path)
        if file.metadata.num_rows:
            rows = file.read_row_group(file.num_row_groups - 1, columns=[view.key])
            entity = rows[view.key][-1].as_py()
            if entity is not None and not online.holds(store.config, store.get_feature_view(view.name), entity):
                return view.name
    return None


def in_redis(store: FeatureStore) -> bool:
    """Whether the online values lie in Redis, where they may change and vanish, and not in the folder."""
    return isinstance(store.config.online_store, UrlRedisOnlineStoreConfig)


@contextlib.contextmanager
def redis_errors(store: FeatureStore, kind: type[redis.RedisError] = redis.RedisError) -> Iterator[None]:
    """Errors of Redis, those of one kind, in one sentence."""
    try:
        yield
    except kind as error:
        url = store.config.online_store.url
        if isinstance(error, redis.AuthenticationError):
            told = f"the Redis at {url} refuses us ({error}): set its password as {PASSWORD} in the environment"
        else:
            told = f"the Redis at {url} does not answer ({error}): start it, or mend online_store"
        raise NarrowcastError(told) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Feast's coloured progress and the deprecations inside ibis: neither is for our user."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
