"""The pipeline's versions on the server: one for each commit and package."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.kfp_client import KFP, KFPError, equals

PIPELINE = "narrowcast-training"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version that the server holds; `new` says whether it was uploaded just now."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool


def version_name(commit: str, *, cached: bool, allow_dirty: bool) -> str:
    """What a package of this checkout is called: the commit, `-changes` after it for what no commit holds.

    `commit` is `parameters.git_commit`'s. Raises NarrowcastError for an unclean checkout that was not allowed.
    """
    unclean = commit == "unknown" or commit.endswith("+changes")
    if unclean and not allow_dirty:
        what = "there is no Git commit here" if commit == "unknown" else "tracked files differ from the commit"
        raise NarrowcastError(
            f"{what}, so the version would name code that nobody can find again: commit, or give --allow-dirty"
        )
    # Kubernetes' names are the narrowest: KFP may keep versions as its objects
    return commit.removesuffix("+changes") + "-changes" * unclean + "-uncached" * (not cached)


def upload(kfp: KFP, package: Path, name: str) -> Version:
    """The version `name` with just this package, uploaded unless it is there already.

    A version's description holds the package's md5. Where `name` is taken by another package (the section `cluster` of
    params.yaml changes it, and so does every `-changes`), the md5's first digits follow the name.
    """
    md5 = hashlib.md5(package.read_bytes(), usedforsecurity=False).hexdigest()
    names = (f"{name}-{md5[:8]}",) if "-changes" in name else (name, f"{name}-{md5[:8]}")
    pipeline = _pipeline(kfp)
    for candidate in names:
        found = _version(kfp, pipeline.pipeline_id, candidate) if pipeline else None
        if found is None:
            return _upload(kfp, package, pipeline, candidate, md5)
        if md5 in (found.description or ""):
            return Version(
                pipeline_id=found.pipeline_id, version_id=found.pipeline_version_id, name=candidate, new=False
            )
    raise NarrowcastError(f"version {names[-1]} of {PIPELINE} holds another package: delete it in Kubeflow Pipelines")


def _pipeline(kfp: KFP) -> Any:
    found = kfp.call(
        f"looking for pipeline {PIPELINE}",
        kfp.client.pipelines.pipeline_service_list_pipelines,
        filter=equals("display_name", PIPELINE),
        **kfp.within,
    )
    return next(iter(found.pipelines or []), None)


def _version(kfp: KFP, pipeline_id: str, name: str) -> Any:
    found = kfp.call(
        f"looking for version {name} of {PIPELINE}",
        kfp.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id,
        filter=equals("display_name", name),
    )
    return next(iter(found.pipeline_versions or []), None)


def _upload(kfp: KFP, package: Path, pipeline: Any, name: str, md5: str) -> Version:
    uploads = kfp.client.pipeline_uploads
    if pipeline is None:
        pipeline = _new_pipeline(kfp)
    try:
        made = kfp.call(
            f"uploading version {name} of {PIPELINE}",
            uploads.upload_pipeline_version,
            str(package),
            name=name,
            pipelineid=pipeline.pipeline_id,
            description=f"package md5 {md5}",
        )
    except KFPError as error:
        if error.status != 409:
            raise
        raise KFPError(f"version {name} was uploaded by someone else just now: submit again", error.status) from None
    return Version(
        pipeline_id=made.pipeline_id, version_id=made.pipeline_version_id, name=made.display_name or name, new=True
    )


def _new_pipeline(kfp: KFP) -> Any:
    from kfp_server_api import V2beta1Pipeline

    pipeline = V2beta1Pipeline(name=PIPELINE, display_name=PIPELINE, namespace=kfp.namespace)
    return kfp.call(f"creating pipeline {PIPELINE}", kfp.client.pipelines.pipeline_service_create_pipeline, pipeline)
