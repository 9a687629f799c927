"""The compaction step: plan and checkpoint to a packed model."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compact(  # type: ignore[no-untyped-def]
    compact_model: dsl.Input[dsl.Model],
    encoded: dsl.Input[dsl.Dataset],
    valid_frame: dsl.Input[dsl.Dataset],
    schema: str,
    packed_model: dsl.Output[dsl.Model],
):
    """Fold, slice, quantise and pack the retrained model into the directory that the server loads.

    Args:
        compact_model: Checkpoint of the retrained model.
        encoded: Encoded data, for the encoder.
        valid_frame: Validated frame, for the sample request.
        schema: Text of the schema's YAML.
        packed_model: Manifest, tables, weights, encoder and sample request.
    """
    from narrowcast.step import step

    with step("compact"):
        from narrowcast.components.compact.pack import pack as work
        from narrowcast.components.data.schema import Schema

        work(compact_model.path, encoded.path, valid_frame.path, Schema.from_text(schema), packed_model.path)
