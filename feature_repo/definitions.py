"""The Feast entities, views and service that a schema implies; the definitions file of every feature store folder.

Views, where the schema has fields for them: `user_attributes` and `item_attributes` (what the entity tables hold, valid
from `EPOCH`), `user_statistics` and `item_statistics` (counts and click rate) and `user_history` (the last items), the
latter three with one row for the state after all events of one entity at one time.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import yaml
from feast import Entity, FeatureService, FeatureView, FileSource, Project, ValueType
from feast import Field as Feature
from feast.types import Array, FeastType, Float64, String, UnixTimestamp

from narrowcast.components.data.schema import TIMESTAMP, Field, Schema

EPOCH = datetime(1800, 1, 1, tzinfo=UTC)
"""Time of what is true before the log begins; earlier than any event that ingestion lets pass."""
DTYPES: dict[str, FeastType] = {"categorical": String, "numeric": Float64, "sequence": Array(String)}


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One feature view: the `fields` that `key` of its `owner` looks up.

    `as_of` names the feature that holds the time of the newest event the values count, where they count events.
    """

    name: str
    owner: Literal["user", "item"]
    key: str
    fields: tuple[Field, ...]
    as_of: str | None = None

    @property
    def path(self) -> str:
        """The source's file, relative to the feature store's folder."""
        return f"{self.name}.parquet"

    @property
    def features(self) -> tuple[str, ...]:
        return (*(f.name for f in self.fields), *((self.as_of,) if self.as_of else ()))


def views(schema: Schema) -> tuple[View, ...]:
    """The views of a schema; none where it names neither user nor item, or nothing about them."""
    found: list[View] = []
    owners: tuple[tuple[Literal["user", "item"], str | None], ...] = (("user", schema.user), ("item", schema.item))
    for owner, key in owners:
        if key is None:
            continue
        if attributes := tuple(f for f in schema.fields if f.owner == owner and f.name != key):
            found.append(View(name=f"{owner}_attributes", owner=owner, key=key, fields=attributes))
        if statistics := tuple(f for f in schema.statistics_fields if f.owner == owner):
            as_of = f"{owner}_as_of"
            found.append(View(name=f"{owner}_statistics", owner=owner, key=key, fields=statistics, as_of=as_of))
    if schema.user and (history := schema.history_field):
        as_of_history = None if schema.statistics_fields else "user_as_of"
        found.append(View(name="user_history", owner="user", key=schema.user, fields=(history,), as_of=as_of_history))
    return tuple(found)


def definitions(schema: Schema, project: str) -> dict[str, Project | Entity | FeatureView | FeatureService]:
    """Feast objects by name, for a project of that name; no service without views."""
    objects: dict[str, Project | Entity | FeatureView | FeatureService] = {
        "project": Project(name=project, description=schema.description)
    }
    entities: dict[str, Entity] = {}
    feature_views: dict[str, FeatureView] = {}
    for view in views(schema):
        entity = entities.setdefault(
            view.owner, Entity(name=view.owner, join_keys=[view.key], value_type=ValueType.STRING)
        )
        columns = [
            Feature(name=view.key, dtype=String),
            *(Feature(name=f.name, dtype=DTYPES[f.type]) for f in view.fields),
        ]
        if view.as_of:
            columns.append(Feature(name=view.as_of, dtype=UnixTimestamp))
        feature_views[view.name] = FeatureView(
            name=view.name,
            entities=[entity],
            ttl=timedelta(0),  # never expires: offline and online then agree however old a value is
            schema=columns,
            source=FileSource(name=f"{view.name}_source", path=view.path, timestamp_field=TIMESTAMP),
        )
    if not feature_views:
        return objects
    service = FeatureService(name=schema.feature_service, features=list(feature_views.values()))
    return {**objects, **entities, **feature_views, "service": service}


if (_beside := Path(__file__).with_name("schema.yaml")).is_file():
    _config = yaml.safe_load(_beside.with_name("feature_store.yaml").read_text())
    globals().update(definitions(Schema.load(_beside), _config["project"]))
