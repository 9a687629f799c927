"""The data steps: checkout, ingest, encode."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def checkout(data_version: str, data_remote: str, raw: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    """Fetch one version of the raw data from the DVC remote.

    Args:
        data_version: md5 that `narrowcast data snapshot` printed, or `latest:<name>`, the last one of that folder.
        data_remote: Address or folder of the DVC remote.
        raw: The raw files as they were when the snapshot was taken.
    """
    from narrowcast.step import step

    with step("checkout"):
        from narrowcast.components.data.versions import checkout as work

        work(data_version, data_remote, raw.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(raw: dsl.Input[dsl.Dataset], schema: str, dataset: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    """Read the raw files into typed tables of events, users and items.

    Args:
        raw: Raw files of one data version.
        schema: Text of the schema's YAML.
        dataset: events.parquet, and users, items, histories where the schema has them.
    """
    from narrowcast.step import step

    with step("ingest"):
        from narrowcast.components.data.ingest import ingest as work
        from narrowcast.components.data.schema import Schema

        work(raw.path, Schema.from_text(schema), dataset.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode(frame: dsl.Input[dsl.Dataset], schema: str, encoded: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    """Turn the validated training frame into ids and numbers that training maps into memory.

    Args:
        frame: Validated training frame.
        schema: Text of the schema's YAML.
        encoded: Arrays by split, the layout, and the encoder with its vocabularies.
    """
    from narrowcast.step import step

    with step("encode"):
        from narrowcast.components.data.encode import encode as work
        from narrowcast.components.data.schema import Schema

        work(frame.path, Schema.from_text(schema), encoded.path)
