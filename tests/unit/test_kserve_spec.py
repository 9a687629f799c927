"""The InferenceService's bodies against KServe's and Kubernetes' schemas; what the settings refuse."""

import copy

import jsonschema
import kubernetes_validate
import pytest
from kserve_cluster import service_schema

from narrowcast.components.serve import kserve_spec, server
from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.errors import NarrowcastError
from narrowcast.settings import build

ADDRESS = "s3://bucket/home/endpoints/shop/0123"
PLACED = {
    "node_selector": {"disk": "fast"},
    "tolerations": [{"key": "serving", "operator": "Exists", "effect": "NoSchedule"}],
}


def settings(**given) -> KServeSettings:
    return build(KServeSettings, given, "kserve")


def bodies(mode: str):
    champion = kserve_spec.predictor(settings(mode=mode), "shop", ADDRESS)
    challenger = kserve_spec.predictor(settings(mode=mode, cpu="2", **PLACED), "shop", ADDRESS)
    yield kserve_spec.service("shop", mode, champion)
    yield kserve_spec.service("shop", mode, champion, stopped=True)
    for percent in (0, 10):
        yield kserve_spec.with_canary("shop", mode, champion, challenger, percent)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_bodies_fit_kserves_schema(mode):
    schema = service_schema()
    if schema is None:
        pytest.skip("the schemas of KServe are not beside this checkout")
    validator = jsonschema.Draft202012Validator(schema)
    for body in bodies(mode):
        validator.validate(body)
        unknown = copy.deepcopy(body)
        unknown["spec"]["predictor"]["canaryPercent"] = 1
        assert not validator.is_valid(unknown)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_pods_fit_kubernetes(mode, version):
    spec = dict(kserve_spec.predictor(settings(mode=mode, **PLACED), "shop", ADDRESS))
    labels = spec.pop("labels")
    for of_kserve in ("minReplicas", "maxReplicas", "deploymentStrategy"):
        spec.pop(of_kserve, None)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop", "labels": labels}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


def test_pods_are_restricted_and_found_by_policies():
    spec = kserve_spec.predictor(settings(), "shop", ADDRESS)
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert context["runAsNonRoot"] is context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"app.kubernetes.io/part-of": "narrowcast", "app.kubernetes.io/component": "predictor"}.items() <= (
        spec["labels"].items()
    )


def test_the_container_is_given_time_to_end():
    (container,) = kserve_spec.predictor(settings(), "shop", ADDRESS)["containers"]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    seconds = float(given["--linger-seconds"]) + float(given["--drain-seconds"]) + server.SECONDS_TO_CLOSE
    assert seconds <= kserve_spec.predictor(settings(), "shop", ADDRESS)["terminationGracePeriodSeconds"]


def test_knative_gets_nothing_that_it_refuses():
    """One port, no probe but readiness, no say in how pods end: knative/serving, pkg/apis/serving/fieldmask.go."""
    spec = kserve_spec.predictor(settings(mode="Knative"), "shop", ADDRESS)
    (container,) = spec["containers"]
    assert not {"terminationGracePeriodSeconds", "deploymentStrategy", "securityContext"} & spec.keys()
    assert not {"startupProbe", "lifecycle"} & container.keys()
    assert [port["name"] for port in container["ports"]] == ["http1"]


def test_a_revision_is_its_content():
    revisions = {
        kserve_spec.revision(kserve_spec.predictor(settings(**given), "shop", address))
        for address in (ADDRESS, ADDRESS + "4")
        for given in ({}, {"cpu": "2"}, {"image": "other"})
    }
    assert len(revisions) == 6
    again = kserve_spec.predictor(settings(), "shop", ADDRESS)
    assert kserve_spec.revision(again) in revisions
    assert kserve_spec.storage_address(again) == ADDRESS


def test_no_secret_of_redis_no_password():
    (container,) = kserve_spec.predictor(settings(redis_secret=""), "shop", ADDRESS)["containers"]
    assert [entry["name"] for entry in container["env"]] == ["STORAGE_URI"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "RawDeployment"}, "kserve: mode is 'RawDeployment'; valid names: Knative, Standard"),
        ({"canary_percents": [50, 10]}, "canary_percents are"),
        ({"canary_percents": [100]}, "canary_percents are"),
        ({"min_replicas": 0}, "min_replicas is 0: must be at least 1"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2: must be at least min_replicas, 3"),
        ({"memory": "2 GB"}, "memory is '2 GB'"),
        ({"namespace": "Narrow"}, "namespace is 'Narrow'"),
        ({"canary_percent": 10}, "did you mean 'canary_percents'"),
    ],
)
def test_settings_that_will_not_do(given, sentence):
    with pytest.raises(NarrowcastError, match=sentence.replace("(", r"\(")):
        settings(**given)
