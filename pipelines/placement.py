"""The pipeline with its steps placed on a cluster: the package that Kubeflow Pipelines runs."""

import functools
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_context import Pipeline

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.cluster_settings import ClusterSettings
from narrowcast.pipelines.training import training
from narrowcast.pods import GPU, USER, cores

JOB_NAME = "NARROWCAST_JOB_NAME"
"""Tells a step the name of its run's workflow. A parameter would do so too, and a step would never be cached."""
JOB_NAME_PATH = "metadata.labels['workflows.argoproj.io/workflow']"


def placed(settings: ClusterSettings) -> GraphComponent:
    """The training pipeline with every step's image, resources, environment, retries and caching.

    Wiring and parameters are those of `training`; a runner on one machine reads no more of the settings than the image.
    """

    @functools.wraps(training.pipeline_func)
    def pipeline(*inputs: Any) -> Any:
        artifacts = training.pipeline_func(*inputs)
        for task in Pipeline.get_default_pipeline().tasks.values():
            _place(task, settings)
        return artifacts

    return dsl.pipeline(name=training.name, description=training.description)(pipeline)


def write_package(settings: ClusterSettings, path: Path) -> None:
    """The package of `placed`, as YAML or JSON by the file's ending."""
    if path.suffix not in {".yaml", ".yml", ".json"}:
        raise NarrowcastError(f"{path}: a package ends in .yaml, .yml or .json")
    compiler.Compiler().compile(placed(settings), str(path))


def _place(task: PipelineTask, settings: ClusterSettings) -> None:
    step = settings.step(task.name.replace("-", "_"))
    task.set_container_image(settings.image)
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
        task.set_env_variable("OMP_NUM_THREADS", str(cores(step.cpu)))  # else as many as the node has cores
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(GPU).set_accelerator_limit(step.gpus)
    if step.retries:
        task.set_retry(step.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    if not step.cache:
        task.set_caching_options(False)
    if step.timeout_seconds:
        kubernetes.set_timeout(task, step.timeout_seconds)
    for key, value in step.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in step.tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key or None,
            operator=toleration.operator,
            value=toleration.value or None,
            effect=toleration.effect or None,
            toleration_seconds=toleration.seconds,
        )
    for secret, keys in settings.secrets.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=keys)
    kubernetes.use_field_path_as_env(task, env_name=JOB_NAME, field_path=JOB_NAME_PATH)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
