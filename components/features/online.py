"""The features of users and items, as the online store has them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from feast import FeatureStore

from narrowcast.components.data.schema import Schema
from narrowcast.components.features.frame import derived_defaults
from narrowcast.components.features.store import SCHEMA, open_store
from narrowcast.feature_repo.definitions import views

Owner: TypeAlias = Literal["user", "item"]
Row: TypeAlias = tuple[Any, ...]
"""An entity's values in the order of `OnlineFeatures.names`."""


class OnlineFeatures:
    """A feature store folder opened for look-ups; `names` has the features of each owner, `keys` the owners' keys.

    Reads may run in several threads.
    """

    def __init__(self, store: FeatureStore, schema: Schema) -> None:
        self.store = store
        self.schema = schema
        self.keys: dict[Owner, str | None] = {"user": schema.user, "item": schema.item}
        self.names: dict[Owner, tuple[str, ...]] = {}
        self._references: dict[Owner, list[str]] = {}
        for owner in self.keys:
            fields = [(view.name, f.name) for view in views(schema) if view.owner == owner for f in view.fields]
            self.names[owner] = tuple(name for _, name in fields)
            self._references[owner] = [f"{view}:{name}" for view, name in fields]
        self._defaults = derived_defaults(schema)

    @classmethod
    def load(cls, store_dir: str | Path) -> "OnlineFeatures":
        """Open the folder that the features step wrote, wherever it lies now. Raises NarrowcastError if it is none."""
        folder = Path(store_dir)
        return cls(open_store(folder), Schema.load(folder / SCHEMA))

    def lookup(self, user: str, items: Sequence[str]) -> dict[str, list[Any]]:
        """The schema's user and item inputs by name, keys included, each with one value an item.

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
        """The owner's features of every id."""
        key = self.keys[owner]
        if not ids or not key or not self.names[owner]:
            return [()] * len(ids)
        found = self.store.get_online_features(self._references[owner], {key: list(ids)}).to_dict()
        columns = [[self._value(name, value) for value in found[name]] for name in self.names[owner]]
        return list(zip(*columns, strict=True))

    def defaults(self, owner: Owner) -> Row:
        """The features of an entity that the store has never seen."""
        return tuple(self._defaults.get(name) for name in self.names[owner])

    def _value(self, name: str, value: Any) -> Any:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self._defaults.get(name)
        return value
