"""The schema: YAML in, the same YAML out, and one sentence for every mistake."""

import pytest
import yaml

from narrowcast.components.data.schema import Schema, shipped_names
from narrowcast.errors import NarrowcastError

BASE = """
name: shop
sources:
  events: {path: log.csv, format: csv}
  items: {path: items.csv, format: csv}
user: user
item: item
timestamp: {column: time}
label: {column: bought}
leakage: [paid]
fields:
  - {name: user, type: categorical, owner: user}
  - {name: item, type: categorical, owner: item}
  - {name: price, type: numeric, owner: item, min: 0}
  - {name: tags, type: sequence, owner: item, separator: ","}
history: {max_length: 5}
checks: {row_key: [user, time]}
"""


def changed(**changes) -> str:
    """The base with top-level keys replaced, or removed where None; `field` adds a field."""
    data = yaml.safe_load(BASE)
    if "field" in changes:
        data["fields"].append(changes.pop("field"))
    data.update(changes)
    return yaml.safe_dump({key: value for key, value in data.items() if value is not None})


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_schemas_round_trip(name):
    schema = Schema.load(name)
    assert Schema.from_text(schema.to_text()) == schema


def test_hash_ignores_order_and_comments_but_not_meaning():
    schema = Schema.from_text(BASE)
    data = yaml.safe_load(BASE)
    backwards = {**dict(reversed(data.items())), "sources": dict(reversed(data["sources"].items()))}
    same = Schema.from_text("# a comment\n" + yaml.safe_dump(backwards, sort_keys=False))
    assert same.hash == schema.hash
    assert Schema.from_text(BASE.replace("min: 0", "min: 1")).hash != schema.hash


def test_inputs_are_fields_then_statistics_then_history():
    schema = Schema.from_text(BASE)
    derived = ("user_events", "user_click_rate", "item_events", "item_click_rate", "history")
    assert schema.input_names == ("user", "item", "price", "tags", *derived)
    assert schema.vocabulary_of(schema.field("history")) == "item"
    plain = Schema.from_text(changed(timestamp=None, history=None))
    assert plain.input_names == ("user", "item", "price", "tags")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (changed(labl={"column": "x"}), "unknown key 'labl'; did you mean 'label'"),
        (changed(label={"colum": "x"}), "label: unknown key 'colum'; did you mean 'column'"),
        (changed(label=None), "missing key 'label'"),
        (changed(sources={"event": {"path": "a", "format": "csv"}}), "did you mean 'events'"),
        (changed(sources={"events": {"path": "a", "format": "xml"}}), "format is 'xml'"),
        (changed(sources={"events": {"path": "/a", "format": "csv"}}), "'/a' of source 'events' must lie in"),
        (changed(sources={"events": {"path": "../a", "format": "csv"}}), "must lie in the raw data directory"),
        (changed(sources={"items": {"path": "a", "format": "csv"}}), "no source 'events'"),
        (changed(user="usr"), "user key 'usr' is not a field: did you mean 'user'"),
        (changed(user="price"), "user key 'price' must be a categorical field"),
        (changed(name="my shop"), "its name must be a plain identifier"),
        (changed(fields=[], user=None, item=None, history=None), "has no fields"),
        (
            changed(field={"name": "paid", "type": "numeric"}),
            "field 'paid' reads 'paid', which the schema lists as leakage",
        ),
        (changed(field={"name": "x", "type": "numeric", "column": "paid"}), "lists as leakage"),
        (changed(field={"name": "x", "type": "numeric", "column": "bought"}), "reads the label column 'bought'"),
        (changed(field={"name": "Price", "type": "numeric"}), "twice"),
        (changed(field={"name": "a b", "type": "numeric"}), "not a plain identifier"),
        (changed(field={"name": "Label", "type": "numeric"}), "'Label' is reserved"),
        (changed(field={"name": "user_as_of", "type": "numeric"}), "'user_as_of' is reserved"),
        (changed(field={"name": "user_events", "type": "numeric"}), "'user_events' is reserved"),
        (changed(field={"name": "x", "type": "number"}), "did you mean 'numeric'"),
        (changed(field={"name": "x", "type": "numeric", "min": "low"}), "min must be float, not 'low'"),
        (changed(field={"name": "x", "type": "numeric", "min": 2, "max": 1}), "min 2 above max 1"),
        (changed(field={"name": "x", "type": "categorical", "min": 2}), "'min' is for numeric fields"),
        (
            changed(field={"name": "x", "type": "numeric", "min_count": 2}),
            "'min_count' is for categorical and sequence",
        ),
        (changed(field={"name": "x", "type": "categorical", "transform": "log"}), "'transform' is for numeric fields"),
        (changed(field={"name": "x", "type": "categorical", "max_length": 3}), "'max_length' is for sequence fields"),
        (
            changed(
                sources={"events": {"path": "a", "format": "csv"}},
                fields=[{"name": "x", "type": "numeric"}],
                user=None,
                item=None,
                history=None,
                checks=None,
            ),
            "numeric fields alone",
        ),
        (changed(field={"name": "x", "type": "numeric", "values": ["1"]}), "'values' lists ids"),
        (changed(field={"name": "x", "type": "sequence", "separator": ""}), "empty separator"),
        (changed(field={"name": "x", "type": "categorical", "min_count": 0}), "at least 1"),
        (changed(field={"name": "x", "type": "numeric", "nullable": "maybe"}), "nullable must be bool"),
        (changed(timestamp=None), "a history needs `user`, `item` and `timestamp`"),
        (changed(timestamp={"column": "t", "unit": "sec"}), "unit is 'sec'"),
        (changed(history={"initial_column": "seen"}), "needs a source 'histories'"),
        (changed(history={"max_length": 0}), "history.max_length must be at least 1"),
        (
            changed(sources={"events": {"path": "a", "format": "csv"}}, item=None, history=None),
            "belongs to the item, but the schema names no item key",
        ),
        (changed(split={"validation": 0.6, "test": 0.4}), "split shares"),
        (changed(checks={"label_rate": [0.9, 0.1]}), "checks.label_rate"),
        (changed(checks={"label_rate": [0.9]}), "must be a list of 2"),
        (changed(checks={"row_key": ["row_id"]}), "names 'row_id', which means another column"),
        (changed(checks={"row_key": ["price"]}), "names 'price', which means another column"),
        ("fields: [", "not valid YAML"),
        ("- a\n- b", "must be a YAML mapping"),
    ],
)
def test_mistakes_are_named(text, told):
    with pytest.raises(NarrowcastError) as raised:
        Schema.from_text(text)
    assert told in str(raised.value)


def test_source_without_its_key_is_refused():
    fields = [{"name": "price", "type": "numeric"}]
    with pytest.raises(NarrowcastError, match="source 'items' but no item key"):
        Schema.from_text(changed(user=None, item=None, history=None, fields=fields))


def test_schema_files(tmp_path):
    with pytest.raises(NarrowcastError, match="does not exist"):
        Schema.load(tmp_path / "absent.yaml")
    with pytest.raises(NarrowcastError, match="did you mean 'ml_100k'"):
        Schema.load("ml_100")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(NarrowcastError, match="not UTF-8"):
        Schema.load(tmp_path / "latin.yaml")
