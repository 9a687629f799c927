"""The feature step: Feast views, the online store, and the point-in-time training frame."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def features(  # type: ignore[no-untyped-def]
    valid_dataset: dsl.Input[dsl.Dataset],
    schema: str,
    seed: int,
    online_store: str,
    frame: dsl.Output[dsl.Dataset],
    feature_store: dsl.Output[dsl.Artifact],
):
    """Apply the Feast definitions, join the training frame as of each event, and fill the online store.

    Args:
        valid_dataset: Validated tables.
        schema: Text of the schema's YAML.
        seed: Seed of the random split of a schema without a timestamp.
        online_store: URL of the Redis that gets the online values; empty: SQLite in the feature store's folder.
        frame: frame.parquet, one row an event with every model input, the label and the split.
        feature_store: Feast repository: registry, sources, online store.
    """
    from narrowcast.step import step

    with step("features"):
        from narrowcast.components.data.schema import Schema
        from narrowcast.components.features.build import build_features as work

        work(valid_dataset.path, Schema.from_text(schema), seed, frame.path, feature_store.path, online_store)
