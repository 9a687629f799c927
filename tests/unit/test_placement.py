"""The compiled package: the same pipeline, each step with what its pod asks for."""

from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import MessageToDict

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import cluster_settings, graph, parameters
from narrowcast.pipelines.cluster_settings import ClusterSettings
from narrowcast.pipelines.placement import placed, write_package
from narrowcast.pipelines.training import training

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Every setting of a step, as pipeline and platform spec."""
    default = {
        "cpu": "1500m",
        "memory": "2Gi",
        "timeout_seconds": 60,
        "retries": 2,
        "node_selector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "seconds": 30}],
    }
    settings = ClusterSettings(
        image="registry.example.com/narrowcast:1",
        secrets={"narrowcast-s3": {"AWS_REGION": "AWS_REGION"}},
        steps={"default": default, "train": {"gpus": 1, "retries": 0, "cache": False}},
    )
    path = tmp_path_factory.mktemp("package") / "package.yaml"
    write_package(settings, path)
    return list(yaml.safe_load_all(path.read_text()))


def executors(pipeline, platform):
    of_platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name in graph.steps():
        label = f"exec-{name.replace('_', '-')}"
        yield name, pipeline["deploymentSpec"]["executors"][label]["container"], of_platform[label]


def test_every_step_has_image_resources_environment_and_place(package):
    for name, container, pod in executors(*package):
        assert container["image"] == "registry.example.com/narrowcast:1"
        resources = container["resources"]
        assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("1500m", "1500m")
        assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == ("2Gi", "2Gi")
        assert ("accelerator" in resources) == (name == "train")
        assert {"name": "OMP_NUM_THREADS", "value": "2"} in container["env"]
        assert pod["activeDeadlineSeconds"] == "60"
        assert pod["nodeSelector"] == {"labels": {"disk": "ssd"}}
        (toleration,) = pod["tolerations"]
        assert (toleration["key"], toleration["tolerationSeconds"]) == ("spot", "30")
        (secret,) = pod["secretAsEnv"]
        assert (secret["secretName"], secret["keyToEnv"]) == (
            "narrowcast-s3",
            [{"envVar": "AWS_REGION", "secretKey": "AWS_REGION"}],
        )
        assert pod["fieldPathAsEnv"][0]["name"] == "NARROWCAST_JOB_NAME"
        assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}


def test_retries_and_caching_are_the_steps_own(package):
    tasks = package[0]["root"]["dag"]["tasks"]
    for name in graph.steps():
        task = tasks[name.replace("_", "-")]
        assert task["cachingOptions"].get("enableCache", False) == (name not in {"train", "deploy"})
        assert task.get("retryPolicy", {}).get("maxRetryCount") == (None if name == "train" else 2)


def test_placing_changes_no_wiring_parameter_or_command():
    def without_places(component):
        spec = MessageToDict(component.pipeline_spec)
        for executor in spec["deploymentSpec"]["executors"].values():
            for key in ("image", "resources", "env"):
                executor["container"].pop(key, None)
        for task in spec["root"]["dag"]["tasks"].values():
            task.pop("retryPolicy", None)
            task.pop("cachingOptions", None)
        return spec

    settings = cluster_settings.load(ROOT / "params.yaml")
    assert without_places(placed(settings)) == without_places(training)


def test_what_kfp_knows_nothing_of_is_a_parameter_of_the_steps_that_depend_on_it(package):
    """KFP's cache sees neither DVC nor a schema's file nor Git: their versions are inputs."""
    tasks = package[0]["root"]["dag"]["tasks"]

    def taken(parameter):
        return {name for name, task in tasks.items() if parameter in task["inputs"].get("parameters", {})}

    assert taken("data_version") == {"checkout", "report"}
    assert taken("schema") >= {"ingest", "validate-raw", "features", "validate-frame", "encode", "compact"}
    assert taken("git_commit") == {"report"}
    assert taken("ray") == {"train", "search", "retrain"}
    assert set(package[0]["root"]["inputDefinitions"]["parameters"]) == set(parameters.signature())


def test_a_package_is_yaml_or_json(tmp_path):
    with pytest.raises(NarrowcastError, match=r"package\.txt: a package ends in \.yaml"):
        write_package(ClusterSettings(), tmp_path / "package.txt")
