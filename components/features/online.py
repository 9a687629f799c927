"""The features of users and items, as the online store has them."""

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import redis
from feast import FeatureStore, FeatureView
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type

from narrowcast.components.data.schema import Schema
from narrowcast.components.features.frame import derived_defaults
from narrowcast.components.features.redis_store import UrlRedisOnlineStore
from narrowcast.components.features.store import END, SCHEMA, in_redis, missing_view, open_store, redis_errors
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, views

Owner: TypeAlias = Literal["user", "item"]
Row: TypeAlias = tuple[Any, ...]
"""An entity's values in the order of `OnlineFeatures.names`."""


class OnlineFeatures:
    """A feature store folder opened for look-ups.

    `keys` has the key of each owner (None where the schema has none), `names` the features that it looks up. Values
    `may_change` while the folder is open where they lie in a Redis. Several threads may read: each has a connection of
    its own.
    """

    def __init__(self, store: FeatureStore, schema: Schema) -> None:
        self.schema = schema
        self.may_change = in_redis(store)
        self.keys: dict[Owner, str | None] = {"user": schema.user, "item": schema.item}
        self.names: dict[Owner, tuple[str, ...]] = {}
        self._views: dict[Owner, list[tuple[FeatureView, list[str]]]] = {}
        for owner in self.keys:
            owned = [view for view in views(schema) if view.owner == owner]
            self.names[owner] = tuple(f.name for view in owned for f in view.fields)
            self._views[owner] = [(store.get_feature_view(v.name), [f.name for f in v.fields]) for v in owned]
        self._config = store.config
        self._local = threading.local()
        self._defaults = derived_defaults(schema)

    @classmethod
    def load(cls, store_dir: str | Path) -> "OnlineFeatures":
        """Open the folder that the features step wrote, wherever it lies now.

        A Redis that does not answer is no error, as it may come back. Raises NarrowcastError where the folder is no
        feature store, or its Redis refuses us or does not hold its entities.
        """
        folder = Path(store_dir)
        store, schema = open_store(folder), Schema.load(folder / SCHEMA)
        missing = None
        try:
            with redis_errors(store, redis.AuthenticationError):
                missing = missing_view(store, folder, schema)
        except redis.RedisError as error:
            logging.getLogger(__name__).warning("the Redis of %s does not answer yet: %s", folder, error)
        if missing:
            raise NarrowcastError(
                f"the Redis at {store.config.online_store.url} does not hold '{missing}' of feature store {folder}: "
                f"write it with `feast -c {folder} materialize {EPOCH:%Y-%m-%dT%H:%M:%S} {END:%Y-%m-%dT%H:%M:%S}`"
            )
        return cls(store, schema)

    def lookup(self, user: str, items: Sequence[str]) -> dict[str, list[Any]]:
        """The schema's user and item inputs by name, keys included, each with one value an item; all are read now.

        Values are those after the last event that the store has seen. An entity without events has 0 events, click
        rate 0.5 and an empty history; one that the entity tables lack has None for every attribute, as in the training
        frame. A schema without a user (or item) key gets no user (or item) columns.
        """
        columns: dict[str, list[Any]] = {}
        if self.schema.user:
            columns[self.schema.user] = [user] * len(items)
            (values,) = self.read("user", [user])
            columns |= {name: [value] * len(items) for name, value in zip(self.names["user"], values, strict=True)}
        if self.schema.item:
            columns[self.schema.item] = list(items)
            rows = self.read("item", items)
            columns |= {name: [row[i] for row in rows] for i, name in enumerate(self.names["item"])}
        return columns

    def read(self, owner: Owner, ids: Sequence[str]) -> list[Row]:
        """The owner's features of every id, those that `FeatureStore.get_online_features` gives.

        Its checks, its response and its search for the views take longer than the read itself, so we ask the online
        store. Raises whatever the store raises.
        """
        views, names = self._views[owner], self.names[owner]
        if not (ids and names):
            return [()] * len(ids)
        online, key = self._online(), self.keys[owner] or ""
        keys = [EntityKey(join_keys=[key], entity_values=[Value(string_val=id_)]) for id_ in ids]
        if isinstance(online, UrlRedisOnlineStore):
            stored = online.read_views(self._config, views, keys)
        else:
            stored = [[] for _ in keys]
            for view, of_view in views:
                found = online.online_read(self._config, view, keys, list(of_view))
                for row, (_, values) in zip(stored, found, strict=True):
                    row += [(values or {}).get(name) for name in of_view]
        return [tuple(map(self._value, names, row)) for row in stored]

    def defaults(self, owner: Owner) -> Row:
        """The features of an entity that the store has never seen."""
        return tuple(self._defaults.get(name) for name in self.names[owner])

    def _online(self) -> OnlineStore:
        if not hasattr(self._local, "online"):
            self._local.online = get_online_store_from_config(self._config.online_store)
        return self._local.online

    def _value(self, name: str, stored: Value | None) -> Any:
        value = None if stored is None else feast_value_type_to_python_type(stored)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self._defaults.get(name)
        return value
