"""Feast's Redis online store, addressed by a URL, its password from the environment only."""

import os
from collections.abc import Sequence
from typing import Literal

from feast import FeatureView
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.retry import Retry

from narrowcast.components.features.redis_url import PASSWORD

SOCKET_SECONDS = 5.0
"""A read, a write or a connection that takes longer has failed."""


class UrlRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    type: Literal["narrowcast.components.features.redis_store.UrlRedisOnlineStore"]  # type: ignore[assignment]
    url: str


class UrlRedisOnlineStore(RedisOnlineStore):
    """Keeps one hash an entity, whose key ends with the Feast project: stores of other projects do not meet there."""

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Redis:
        assert isinstance(online_store_config, UrlRedisOnlineStoreConfig)
        if not isinstance(self._client, Redis):
            self._client = Redis.from_url(
                online_store_config.url,
                password=os.environ.get(PASSWORD) or None,
                socket_timeout=SOCKET_SECONDS,
                socket_connect_timeout=SOCKET_SECONDS,
                retry=Retry(NoBackoff(), 1, (ConnectionLostError,)),  # one that the server closed since the last read
            )
        return self._client

    def read_views(
        self, config: RepoConfig, views: Sequence[tuple[FeatureView, Sequence[str]]], keys: list[EntityKey]
    ) -> list[list[Value | None]]:
        """For every key the values of all views' named features: one round trip where `online_read` needs one a view.

        The views must be those of one entity, which share a hash. Raises redis.RedisError where Redis does not answer.
        """
        fields: list[str | bytes] = []
        for view, names in views:
            _, of_view = self._generate_hset_keys_for_features(view, list(names))
            fields += of_view[:-1]  # the last is the view's time
        commands = [(name, fields) for name in self._generate_redis_keys_for_entities(config, keys)]
        rows = self._read_hash_fields(config, commands)
        return [[None if value is None else Value.FromString(bytes(value)) for value in row] for row in rows]

    def holds(self, config: RepoConfig, view: FeatureView, entity: str) -> bool:
        """Whether the entity has values of the view. Raises redis.RedisError where Redis does not answer."""
        key = EntityKey(join_keys=list(view.join_keys), entity_values=[Value(string_val=entity)])
        (name,) = self._generate_redis_keys_for_entities(config, [key])
        return bool(self._get_client(config.online_store).execute_command("HEXISTS", name, f"_ts:{view.name}"))
