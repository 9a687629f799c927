"""One run on the cluster."""

from dataclasses import dataclass
from datetime import UTC, datetime

from narrowcast.pipelines.cluster_request import Request, place
from narrowcast.pipelines.kfp_client import KFP


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A run that the server has taken; `new_version` says whether its version was uploaded for it."""

    run_id: str
    name: str
    version: str
    new_version: bool
    url: str


def submit(
    kfp: KFP, request: Request, *, name: str | None, experiment: str | None, create_experiment: bool = False
) -> Submitted:
    """Create a run of the request's version. Without `name` it is called after the commit and the time."""
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    version, experiment_id = place(kfp, request, experiment=experiment, create_experiment=create_experiment)
    called = name or f"training {version.name[:8]} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = V2beta1Run(
        display_name=called,
        experiment_id=experiment_id,
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=V2beta1RuntimeConfig(parameters=request.arguments),
        service_account=request.settings.service_account,
    )
    made = kfp.call(f"creating run '{called}'", kfp.client.runs.run_service_create_run, run)
    return Submitted(
        run_id=made.run_id,
        name=called,
        version=version.name,
        new_version=version.new,
        url=kfp.link("runs", made.run_id),
    )
