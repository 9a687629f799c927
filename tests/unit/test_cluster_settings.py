"""The section `cluster` of params.yaml, and the arguments that a run gets from it."""

from pathlib import Path

import pytest

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import cluster_settings, parameters
from narrowcast.pipelines.cluster_settings import ClusterSettings
from narrowcast.pods import Toleration

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def test_a_steps_own_settings_replace_the_defaults_one_by_one():
    settings = ClusterSettings(
        steps={
            "default": {"cpu": "1", "memory": "2Gi", "tolerations": [{"key": "spot", "operator": "Exists"}]},
            "train": {"memory": "8Gi", "cache": False},
        }
    )
    train, encode = settings.step("train"), settings.step("encode")
    assert (train.cpu, train.memory, train.cache) == ("1", "8Gi", False)
    assert train.tolerations == (Toleration(key="spot", operator="Exists"),)
    assert (encode.memory, encode.cache) == ("2Gi", True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cluster.hots": "x"}, "params.yaml: cluster: unknown key 'hots'; did you mean 'host'"),
        ({"cluster.home": "/data"}, "cluster: home is '/data': give an address of object storage"),
        ({"cluster.steps.trian.cpu": "2"}, "cluster: steps: no step 'trian'; did you mean 'train'"),
        ({"cluster.steps.train.cpus": "2"}, "cluster: steps: train: unknown key 'cpus'; did you mean 'cpu'"),
        ({"cluster.steps.train.memory": "4 GB"}, "cluster: steps: train: memory is '4 GB': write it as Kubernetes"),
        ({"cluster.steps.train.retries": "-1"}, "cluster: steps: train: retries is -1"),
        ({"cluster.steps.train.tolerations": "[{value: x}]"}, "steps: train: a toleration with operator Equal needs"),
        ({"cluster.ray.gpu": "1"}, "cluster: ray: unknown key 'gpu'"),
        ({"cluster.kserve.modes": "Standard"}, "cluster: kserve: unknown key 'modes'; did you mean 'mode'"),
        ({"cluster.ray.active_deadline_seconds": "172800"}, "steps: train: timeout_seconds is 90000, but its RayJob"),
        ({"cluster": "here"}, "params.yaml: cluster must be a mapping"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_place(changes, sentence):
    with pytest.raises(NarrowcastError) as raised:
        cluster_settings.load(PARAMS, changes)
    assert sentence in str(raised.value)


def test_arguments_differ_from_a_run_here_only_in_places():
    settings = cluster_settings.load(PARAMS)
    values = parameters.load(PARAMS, {"epochs": "3"})
    there = cluster_settings.arguments(values, settings, ROOT)
    here = parameters.complete(values, home="/home", root=ROOT)
    assert there.keys() == here.keys() == parameters.signature().keys()
    different = {name for name in here if here[name] != there[name]}
    assert different == {"home", "champion", "ray", "kserve", "data_remote", "online_store"}
    assert there["champion"] == "s3://narrowcast/home/endpoints/default.json"
    assert there["ray"]["home"] == there["home"] == settings.home
    assert there["kserve"]["image"] == there["ray"]["image"] == settings.image


def test_a_data_remote_on_this_machine_is_refused():
    settings = ClusterSettings(parameters={"data_remote": "/data/remote"})
    with pytest.raises(NarrowcastError, match=r"'/data/remote', which no pod can reach: set cluster\.parameters"):
        cluster_settings.arguments(parameters.load(PARAMS), settings, ROOT)


def test_the_clusters_parameters_are_checked_as_all_are():
    settings = ClusterSettings(parameters={"data_remot": "s3://x/y"})
    with pytest.raises(NarrowcastError, match=r"cluster\.parameters: unknown parameter 'data_remot'; did you mean"):
        cluster_settings.arguments(parameters.load(PARAMS), settings, ROOT)


def test_without_an_endpoint_there_is_no_champion():
    values = parameters.load(PARAMS, {"endpoint": ""})
    settings = cluster_settings.load(PARAMS)
    assert cluster_settings.arguments(values, settings, ROOT)["champion"] == ""


def test_without_kuberay_steps_train_themselves_and_without_kserve_nothing_is_deployed():
    settings = cluster_settings.load(PARAMS, {"cluster.ray": "null", "cluster.kserve": "null"})
    there = cluster_settings.arguments(parameters.load(PARAMS), settings, ROOT)
    assert (there["ray"], there["kserve"], there["endpoint"], there["champion"]) == ({}, {}, "", "")
