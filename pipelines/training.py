"""The training DAG: raw data version to deployed compact model and report."""

from typing import NamedTuple

from kfp import dsl

from narrowcast.components.compact.component import compact
from narrowcast.components.data.component import checkout, encode, ingest
from narrowcast.components.evaluate.component import evaluate
from narrowcast.components.features.component import features
from narrowcast.components.report.component import report
from narrowcast.components.search.component import search
from narrowcast.components.serve.component import deploy
from narrowcast.components.train.component import retrain, train
from narrowcast.components.validate.component import validate_frame, validate_raw


class Artifacts(NamedTuple):
    """What a run leaves behind, in the order of the DAG."""

    raw: dsl.Dataset
    dataset: dsl.Dataset
    valid_dataset: dsl.Dataset
    raw_docs: dsl.Artifact
    frame: dsl.Dataset
    feature_store: dsl.Artifact
    valid_frame: dsl.Dataset
    frame_docs: dsl.Artifact
    encoded: dsl.Dataset
    full_model: dsl.Model
    plan: dsl.Artifact
    compact_model: dsl.Model
    packed_model: dsl.Model
    evaluation: dsl.Artifact
    deployment: dsl.Artifact
    page: dsl.HTML


@dsl.pipeline(name="narrowcast-training", description="Raw clicks to a compact model that serves")
def training(
    schema: str,
    data_version: str,
    git_commit: str,
    home: str,
    champion: str = "",
    ray: dict = {},  # noqa: B006  KFP takes no None for a dict
    kserve: dict = {},  # noqa: B006
    data_remote: str = "",
    online_store: str = "",
    endpoint: str = "default",
    seed: int = 0,
    backbone: str = "deepfm",
    model: dict = {},  # noqa: B006
    width: int = 16,
    inner_width: int = 0,
    epochs: int = 6,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    num_workers: int = 2,
    training: dict = {},  # noqa: B006
    method: str = "pep",
    budget: str = "1/10",
    bits: int = 8,
    num_trials: int = 2,
    max_auc_loss: float = 0.005,
    max_latency_ms: float = 200.0,
) -> Artifacts:
    """See `docs/architecture.md`; every default here is also in `params.yaml`, which a run reads."""
    fetched = checkout(data_version=data_version, data_remote=data_remote)
    ingested = ingest(raw=fetched.outputs["raw"], schema=schema)
    valid = validate_raw(dataset=ingested.outputs["dataset"], schema=schema)
    featured = features(
        valid_dataset=valid.outputs["valid_dataset"], schema=schema, seed=seed, online_store=online_store
    )
    valid_rows = validate_frame(frame=featured.outputs["frame"], schema=schema)
    shards = encode(frame=valid_rows.outputs["valid_frame"], schema=schema)
    full = train(
        encoded=shards.outputs["encoded"],
        backbone=backbone,
        model=model,
        width=width,
        inner_width=inner_width,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_workers=num_workers,
        training=training,
        seed=seed,
        ray=ray,
    )
    searched = search(
        encoded=shards.outputs["encoded"],
        backbone=backbone,
        model=model,
        width=width,
        inner_width=inner_width,
        batch_size=batch_size,
        learning_rate=learning_rate,
        training=training,
        seed=seed,
        method=method,
        budget=budget,
        bits=bits,
        num_trials=num_trials,
        num_workers=num_workers,
        ray=ray,
    )
    retrained = retrain(
        encoded=shards.outputs["encoded"],
        plan=searched.outputs["plan"],
        backbone=backbone,
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_workers=num_workers,
        training=training,
        seed=seed,
        ray=ray,
    )
    packed = compact(
        compact_model=retrained.outputs["compact_model"],
        encoded=shards.outputs["encoded"],
        valid_frame=valid_rows.outputs["valid_frame"],
        schema=schema,
    )
    judged = evaluate(
        encoded=shards.outputs["encoded"],
        valid_frame=valid_rows.outputs["valid_frame"],
        full_model=full.outputs["full_model"],
        compact_model=retrained.outputs["compact_model"],
        packed_model=packed.outputs["packed_model"],
        feature_store=featured.outputs["feature_store"],
        plan=searched.outputs["plan"],
        champion=champion,
        max_auc_loss=max_auc_loss,
        max_latency_ms=max_latency_ms,
        seed=seed,
    )
    deployed = deploy(
        packed_model=packed.outputs["packed_model"],
        feature_store=featured.outputs["feature_store"],
        evaluation=judged.outputs["evaluation"],
        endpoint=endpoint,
        home=home,
        kserve=kserve,
    ).set_caching_options(False)
    reported = report(
        raw=fetched.outputs["raw"],
        dataset=ingested.outputs["dataset"],
        valid_dataset=valid.outputs["valid_dataset"],
        frame=featured.outputs["frame"],
        valid_frame=valid_rows.outputs["valid_frame"],
        encoded=shards.outputs["encoded"],
        full_model=full.outputs["full_model"],
        plan=searched.outputs["plan"],
        compact_model=retrained.outputs["compact_model"],
        packed_model=packed.outputs["packed_model"],
        evaluation=judged.outputs["evaluation"],
        deployment=deployed.outputs["deployment"],
        schema=schema,
        data_version=data_version,
        git_commit=git_commit,
    )
    return Artifacts(
        raw=fetched.outputs["raw"],
        dataset=ingested.outputs["dataset"],
        valid_dataset=valid.outputs["valid_dataset"],
        raw_docs=valid.outputs["raw_docs"],
        frame=featured.outputs["frame"],
        feature_store=featured.outputs["feature_store"],
        valid_frame=valid_rows.outputs["valid_frame"],
        frame_docs=valid_rows.outputs["frame_docs"],
        encoded=shards.outputs["encoded"],
        full_model=full.outputs["full_model"],
        plan=searched.outputs["plan"],
        compact_model=retrained.outputs["compact_model"],
        packed_model=packed.outputs["packed_model"],
        evaluation=judged.outputs["evaluation"],
        deployment=deployed.outputs["deployment"],
        page=reported.outputs["page"],
    )
