"""The RayJob's body: what the definition and the restricted profile allow, sized and placed as settings say."""

import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray_cluster import SCHEMA, check

from narrowcast.components.train.ray_manifest import MOST_NAME, identity, job_name, manifest
from narrowcast.components.train.ray_settings import RaySettings
from narrowcast.errors import NarrowcastError
from narrowcast.settings import build

needs_definition = pytest.mark.skipif(not SCHEMA.exists(), reason=f"{SCHEMA} is absent")
LAUNCH = Path(__file__).parents[2] / "k8s" / "launch"
SETTINGS = {
    "home": "s3://bucket/home",
    "image": "registry.example.com/narrowcast:1",
    "worker_cpu": "2",
    "worker_memory": "8Gi",
    "gpus_per_worker": 1,
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "seconds": 60}],
    "retries": 2,
}


def body_of(**changes):
    return manifest(
        build(RaySettings, {**SETTINGS, **changes}, "ray"),
        name="run-train-12345678",
        namespace="runs",
        address="s3://bucket/home/jobs/run-train-12345678/job.json",
        num_workers=3,
        annotations={"narrowcast/step": "a", "narrowcast/try": "b"},
        owner={"apiVersion": "v1", "kind": "Pod", "name": "step", "uid": "1"},
    )


def templates(body):
    """The pods' templates by their main container."""
    cluster = body["spec"]["rayClusterSpec"]
    found = [body["spec"]["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    found += [group["template"] for group in cluster["workerGroupSpecs"]]
    return {template["spec"]["containers"][0]["name"]: template for template in found}


@needs_definition
@pytest.mark.parametrize("changes", [{}, {"gpus_per_worker": 0, "node_selector": {}, "tolerations": []}])
def test_the_definition_of_rayjobs_allows_it(changes):
    check(body_of(**changes))


@needs_definition
def test_the_check_refuses_what_the_definition_does_not_name():
    body = body_of()
    body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["securitycontext"] = {}
    with pytest.raises(jsonschema.ValidationError, match="securitycontext"):
        check(body)


@pytest.mark.parametrize("role", ["submitter", "ray-head", "ray-worker"])
def test_every_pod_is_valid_and_restricted(role):
    template = templates(body_of())[role]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod", **template["metadata"]}}
    kubernetes_validate.validate(pod, "1.30", strict=True)
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("narrowcast-ray", False)
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
    assert container["image"] == SETTINGS["image"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    has_secret = container.get("envFrom") == [{"secretRef": {"name": "narrowcast-s3"}}]
    assert has_secret == (role != "submitter")  # which only hands the program in


def test_network_policies_and_account_of_k8s_are_those_of_the_pods():
    policies = list(yaml.safe_load_all((LAUNCH / "ray-network.yaml").read_text()))
    (account,) = yaml.safe_load_all((LAUNCH / "ray.yaml").read_text())
    wanted = policies[0]["spec"]["podSelector"]["matchLabels"]
    for template in templates(body_of()).values():
        assert wanted.items() <= template["metadata"]["labels"].items()
        assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_settings_are_where_they_belong():
    spec = body_of()["spec"]
    pods = {role: template["spec"] for role, template in templates(body_of()).items()}
    assert pods["ray-worker"]["containers"][0]["resources"]["limits"] == {
        "cpu": "2",
        "memory": "8Gi",
        "nvidia.com/gpu": "1",
    }
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in pods["ray-worker"]["containers"][0]["env"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in pods["ray-head"]["containers"][0]["env"]
    assert pods["ray-worker"]["nodeSelector"] == {"pool": "gpu"}
    assert pods["ray-worker"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    ]
    for role in ("submitter", "ray-head"):
        assert not {"nodeSelector", "tolerations"} & pods[role].keys()
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    assert spec["backoffLimit"] == 2
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"].endswith("ray_main s3://bucket/home/jobs/run-train-12345678/job.json")
    assert spec["preRunningDeadlineSeconds"] > 900  # the step's own comes first


@pytest.mark.parametrize(
    "run", ["narrowcast-training-abcde", "x" * 80, "2026 Nightly_Run!", "---", "narrowcast-training-abcdefgh-" * 2]
)
@pytest.mark.parametrize("step", ["train", "retrain", "search"])
def test_a_name_is_one_that_kuberay_takes(run, step):
    name = job_name(run, step, identity(run, {"step": step}))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= MOST_NAME
    assert f"-{step}-" in name


def test_a_name_is_the_same_for_the_same_work_alone():
    def name(run="run", seed=0):
        return job_name(run, "train", identity(run, {"parameters": {"seed": seed}}))

    assert name() == name()
    assert len({name(), name(seed=1), name(run="other"), name(run="run-" * 20), name(run="run-" * 21)}) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"home": "/tmp"}, "home is '/tmp': give an address of object storage"),
        ({"worker_memory": "4 GB"}, "worker_memory is '4 GB': write it as Kubernetes does"),
        ({"head_cpu": "-1"}, "head_cpu is '-1'"),
        ({"worker_cpu": "4Gi"}, "worker_cpu is '4Gi': give a number of cores"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 2: a worker trains on one GPU or on none"),
        ({"pending_deadline_seconds": 0}, "pending_deadline_seconds is 0: must be at least 1"),
        ({"retries": -1}, "retries is -1"),
        ({"secret": ""}, "secret is ''"),
        ({"service_account": "Ray Account"}, "service_account is 'Ray Account'"),
        ({"worker_mem": "4Gi"}, "unknown key 'worker_mem'; did you mean 'worker_memory'"),
        ({"tolerations": [{"operator": "Exists", "value": "x"}]}, "operator Exists takes no value"),
        ({"tolerations": [{"value": "x"}]}, "needs a key"),
        ({"tolerations": [{"key": "a", "seconds": 5}]}, "seconds count for the effect NoExecute alone"),
    ],
)
def test_bad_settings_are_one_sentence(changes, said):
    with pytest.raises(NarrowcastError, match=re.escape(said)):
        build(RaySettings, {**SETTINGS, **changes}, "parameter 'ray'")
