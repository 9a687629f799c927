"""The deployment step."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(  # type: ignore[no-untyped-def]
    packed_model: dsl.Input[dsl.Model],
    feature_store: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    endpoint: str,
    home: str,
    kserve: dict,
    deployment: dsl.Output[dsl.Artifact],
):
    """Have the endpoint serve the model if every gate passed; keep the champion if not.

    Args:
        packed_model: Packed model.
        feature_store: Feast repository.
        evaluation: The gates' verdict.
        endpoint: Name of the endpoint.
        home: Folder, or object storage's address, that holds the endpoints' state.
        kserve: KServe's settings, see `KServeSettings`; empty, a process on this machine serves.
        deployment: deployment.json: what serves now, where, and why.
    """
    from narrowcast.step import step

    with step("deploy"):
        if kserve:
            from narrowcast.components.serve.kserve_deploy import deploy as deploy_on_cluster

            artifacts = packed_model.path, feature_store.path, evaluation.path
            deploy_on_cluster(*artifacts, endpoint, home, deployment.path, kserve=kserve)
        else:
            from narrowcast.components.serve.deploy import deploy as deploy_here

            deploy_here(packed_model.path, feature_store.path, evaluation.path, endpoint, home, deployment.path)
