"""The features of one user and many candidate items, as a server looks them up."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feast import FeatureStore

from narrowcast.components.data.schema import Schema
from narrowcast.components.features.frame import derived_defaults
from narrowcast.components.features.store import SCHEMA, open_store
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import views


class OnlineFeatures:
    """A feature store folder opened for look-ups; the registry is read once."""

    def __init__(self, store: FeatureStore, schema: Schema) -> None:
        self.store = store
        self.schema = schema
        self._references = {
            owner: [f"{view.name}:{f.name}" for view in views(schema) if view.owner == owner for f in view.fields]
            for owner in ("user", "item")
        }
        self._defaults = derived_defaults(schema)

    @classmethod
    def load(cls, store_dir: str | Path) -> "OnlineFeatures":
        """Open the folder that the features step wrote, wherever it lies now. Raises NarrowcastError if it is none."""
        folder = Path(store_dir)
        return cls(open_store(folder), Schema.load(folder / SCHEMA))

    def lookup(self, user: str, items: Sequence[str]) -> dict[str, list[Any]]:
        """The schema's user and item inputs by name, keys included, each with one value an item.

        Values are those after the last event that the store has seen. An entity without events has 0 events, click rate
        0.5 and an empty history, one that the entity tables lack has None for every attribute, as in the training frame;
        `Encoder.transform` takes both. A schema without a user (or item) key gets no user (or item) columns.
        """
        columns: dict[str, list[Any]] = {}
        if self.schema.user:
            found = self._read("user", self.schema.user, [user])
            columns |= {name: values * len(items) for name, values in found.items()}
        if self.schema.item:
            columns |= self._read("item", self.schema.item, list(items))
        return columns

    def _read(self, owner: str, key: str, ids: list[str]) -> dict[str, list[Any]]:
        references = self._references[owner]
        if not (references and ids):
            return {key: ids} | {reference.split(":")[1]: [] for reference in references}
        found = self.store.get_online_features(references, {key: ids}).to_dict()
        return {key: ids} | {
            name: [self._value(name, value) for value in values] for name, values in found.items() if name != key
        }

    def _value(self, name: str, value: Any) -> Any:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self._defaults.get(name)
        return value
