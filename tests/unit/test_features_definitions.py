from datetime import UTC, datetime

from narrowcast.components.data.columns import EARLIEST
from narrowcast.components.data.schema import Schema
from narrowcast.feature_repo.definitions import EPOCH, definitions, views

NO_ENTITY = """
name: ads
sources: {events: {path: events.csv, format: csv}}
label: {column: click}
fields: [{name: site, type: categorical}, {name: price, type: numeric}]
"""


def test_every_input_of_an_entity_is_in_one_view_beside_its_key(tiny_schema):
    names = [name for view in views(tiny_schema) for name in view.features]
    of_entities = [f.name for f in tiny_schema.inputs if f.owner != "context"]
    assert len(names) == len(set(names))
    assert set(names) | {"user_id", "item_id"} == {*of_entities, "user_as_of", "item_as_of"}
    keys = {"user": "user_id", "item": "item_id"}
    assert all(view.key == keys[view.owner] for view in views(tiny_schema))


def test_the_service_is_named_for_the_schema_and_reads_every_view(tiny_schema):
    objects = definitions(tiny_schema, "tiny_1")
    service = objects["service"]
    assert service.name == tiny_schema.feature_service
    assert {p.name for p in service.feature_view_projections} == {view.name for view in views(tiny_schema)}


def test_history_without_statistics_still_says_what_time_it_is_from():
    text = """
name: plain
sources: {events: {path: events.csv, format: csv}}
user: u
item: i
timestamp: {column: t}
label: {column: y}
statistics: false
fields: [{name: u, type: categorical, owner: user}, {name: i, type: categorical, owner: item}]
history: {}
"""
    (view,) = views(Schema.from_text(text))
    assert (view.name, view.features) == ("user_history", ("history", "user_as_of"))


def test_a_schema_without_entities_has_a_project_and_nothing_else():
    schema = Schema.from_text(NO_ENTITY)
    assert views(schema) == ()
    assert list(definitions(schema, "ads_1")) == ["project"]


def test_the_epoch_is_before_any_event_that_ingestion_lets_pass():
    assert datetime.fromtimestamp(EARLIEST / 1e6, UTC) > EPOCH
