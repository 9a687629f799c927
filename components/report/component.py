"""The report step."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(  # type: ignore[no-untyped-def]
    raw: dsl.Input[dsl.Dataset],
    dataset: dsl.Input[dsl.Dataset],
    valid_dataset: dsl.Input[dsl.Dataset],
    frame: dsl.Input[dsl.Dataset],
    valid_frame: dsl.Input[dsl.Dataset],
    encoded: dsl.Input[dsl.Dataset],
    full_model: dsl.Input[dsl.Model],
    plan: dsl.Input[dsl.Artifact],
    compact_model: dsl.Input[dsl.Model],
    packed_model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    deployment: dsl.Input[dsl.Artifact],
    schema: str,
    data_version: str,
    git_commit: str,
    page: dsl.Output[dsl.HTML],
):
    """One self-contained page on the whole run.

    Args:
        raw: Raw data.
        dataset: Ingested tables.
        valid_dataset: Validated tables.
        frame: Training frame.
        valid_frame: Validated frame, with its drift.
        encoded: Encoded data.
        full_model: Checkpoint of the uncompressed model.
        plan: The search's plan and trials.
        compact_model: Checkpoint of the retrained model.
        packed_model: Packed model.
        evaluation: The gates' verdict.
        deployment: What serves now.
        schema: Text of the schema's YAML.
        data_version: md5 of the raw data.
        git_commit: Commit of the code.
        page: The report, HTML.
    """
    from narrowcast.step import step

    with step("report"):
        from narrowcast.components.data.schema import Schema
        from narrowcast.components.report.page import write_report as work

        artifacts = {
            "checkout": raw.path,
            "ingest": dataset.path,
            "validate_raw": valid_dataset.path,
            "features": frame.path,
            "validate_frame": valid_frame.path,
            "encode": encoded.path,
            "train": full_model.path,
            "search": plan.path,
            "retrain": compact_model.path,
            "compact": packed_model.path,
            "evaluate": evaluation.path,
            "deploy": deployment.path,
        }
        work(artifacts, Schema.from_text(schema), data_version=data_version, git_commit=git_commit, target=page.path)
