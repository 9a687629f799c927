"""The features of one user and many candidate items, as a server looks them up."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from feast import FeatureStore

from narrowcast.components.data.schema import Schema
from narrowcast.components.features.frame import derived_defaults
from narrowcast.components.features.store import SCHEMA, open_store
from narrowcast.feature_repo.definitions import views

ITEMS_KEPT = 100_000
"""Items whose values stay in memory; Feast takes about 0.1 ms to read one, and every request names a hundred."""


class OnlineFeatures:
    """A feature store folder opened for look-ups.

    The registry and every item met are read once: the folder must not change while it is open. Users are read anew.
    """

    def __init__(self, store: FeatureStore, schema: Schema) -> None:
        self.store = store
        self.schema = schema
        self._names: dict[str, tuple[str, ...]] = {}
        self._references: dict[str, list[str]] = {}
        for owner in ("user", "item"):
            fields = [(view.name, f.name) for view in views(schema) if view.owner == owner for f in view.fields]
            self._names[owner] = tuple(name for _, name in fields)
            self._references[owner] = [f"{view}:{name}" for view, name in fields]
        self._defaults = derived_defaults(schema)
        self._items: dict[str, tuple[Any, ...]] = {}

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
            (values,) = self._read("user", self.schema.user, [user])
            columns |= {name: [value] * len(items) for name, value in zip(self._names["user"], values, strict=True)}
        if self.schema.item:
            columns[self.schema.item] = list(items)
            rows = self._rows_of_items(self.schema.item, items)
            columns |= {name: [row[i] for row in rows] for i, name in enumerate(self._names["item"])}
        return columns

    def _rows_of_items(self, key: str, items: Sequence[str]) -> list[tuple[Any, ...]]:
        known = {item: self._items[item] for item in items if item in self._items}
        if unread := [item for item in dict.fromkeys(items) if item not in known]:
            fresh = dict(zip(unread, self._read("item", key, unread), strict=True))
            known |= fresh
            if len(self._items) + len(fresh) <= ITEMS_KEPT:
                self._items |= fresh
        return [known[item] for item in items]

    def _read(self, owner: Literal["user", "item"], key: str, ids: list[str]) -> list[tuple[Any, ...]]:
        """The owner's features of every id, in the order of `_names`."""
        if not self._references[owner]:
            return [()] * len(ids)
        found = self.store.get_online_features(self._references[owner], {key: ids}).to_dict()
        columns = [[self._value(name, value) for value in found[name]] for name in self._names[owner]]
        return list(zip(*columns, strict=True))

    def _value(self, name: str, value: Any) -> Any:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self._defaults.get(name)
        return value
