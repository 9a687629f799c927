"""The validation steps: raw data, and the training frame with its drift."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate_raw(  # type: ignore[no-untyped-def]
    dataset: dsl.Input[dsl.Dataset],
    schema: str,
    valid_dataset: dsl.Output[dsl.Dataset],
    raw_docs: dsl.Output[dsl.Artifact],
):
    """Check the ingested tables against the suite that the schema implies; stop or quarantine as it says.

    Args:
        dataset: Ingested tables.
        schema: Text of the schema's YAML.
        valid_dataset: The same tables without quarantined rows, which lie beside them in quarantine.parquet.
        raw_docs: Great Expectations Data Docs, a static site.
    """
    from narrowcast.step import step

    with step("validate_raw"):
        from narrowcast.components.data.schema import Schema
        from narrowcast.components.validate.validate import validate_dataset as work

        work(dataset.path, Schema.from_text(schema), valid_dataset.path, raw_docs.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate_frame(  # type: ignore[no-untyped-def]
    frame: dsl.Input[dsl.Dataset],
    schema: str,
    valid_frame: dsl.Output[dsl.Dataset],
    frame_docs: dsl.Output[dsl.Artifact],
):
    """Check the training frame, and the drift from the training period to the later one.

    Args:
        frame: Point-in-time training frame.
        schema: Text of the schema's YAML.
        valid_frame: The frame without quarantined rows, and drift.json.
        frame_docs: Great Expectations Data Docs, a static site.
    """
    from narrowcast.step import step

    with step("validate_frame"):
        from narrowcast.components.data.schema import Schema
        from narrowcast.components.validate.validate import validate_frame as work

        work(frame.path, Schema.from_text(schema), valid_frame.path, frame_docs.path)
