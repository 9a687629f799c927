"""The evaluation step: the gates between a packed model and its endpoint."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(  # type: ignore[no-untyped-def]
    encoded: dsl.Input[dsl.Dataset],
    valid_frame: dsl.Input[dsl.Dataset],
    full_model: dsl.Input[dsl.Model],
    compact_model: dsl.Input[dsl.Model],
    packed_model: dsl.Input[dsl.Model],
    feature_store: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    champion: str,
    max_auc_loss: float,
    max_latency_ms: float,
    seed: int,
    evaluation: dsl.Output[dsl.Artifact],
):
    """Judge the packed model: quality, bytes, latency, parity, and a server that answers.

    A gate that fails does not fail the step: deploy reads the verdict and keeps the champion.

    Args:
        encoded: Encoded data.
        valid_frame: Validated frame.
        full_model: Checkpoint of the uncompressed model.
        compact_model: Checkpoint of the retrained model.
        packed_model: Packed model.
        feature_store: Feast repository.
        plan: The search's plan, with its budget.
        champion: Folder of the packed model now deployed, address of the endpoint's state, or empty.
        max_auc_loss: AUC that the packed model may lose to the full model and to the champion.
        max_latency_ms: Median milliseconds that ranking the sample request's candidates may take over HTTP.
        seed: Seed of the bootstrap.
        evaluation: evaluation.json: the gates, each with its figure, its limit and its verdict.
    """
    from narrowcast.step import step

    with step("evaluate"):
        from narrowcast.components.evaluate.gates import evaluate as work

        work(
            encoded=encoded.path,
            frame=valid_frame.path,
            full_model=full_model.path,
            compact_model=compact_model.path,
            packed_model=packed_model.path,
            feature_store=feature_store.path,
            plan=plan.path,
            champion=champion,
            max_auc_loss=max_auc_loss,
            max_latency_ms=max_latency_ms,
            seed=seed,
            target=evaluation.path,
        )
