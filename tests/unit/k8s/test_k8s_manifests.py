"""Every manifest against the schemas, PodSecurity's restricted profile and the project's own rules."""

import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from narrowcast import __version__

K8S = Path(__file__).parents[3] / "k8s"
FOLDERS = ["overlays/minimal", "overlays/gpu", "monitoring"]
TEXT, TEXTS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}


def strict(required: list[str], **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def custom(kind: str, spec):
    metadata = strict(["name", "namespace", "labels"], name=TEXT, namespace=TEXT, labels=TEXTS)
    return strict(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
PROMETHEUS = {
    "ServiceMonitor": custom(
        "ServiceMonitor",
        strict(
            ["selector", "endpoints"],
            selector=strict(["matchLabels"], matchLabels=TEXTS),
            endpoints={
                "type": "array",
                "minItems": 1,
                "items": strict(
                    ["port"],
                    port=TEXT,
                    path={"type": "string", "pattern": "^/"},
                    interval=DURATION,
                    relabelings={
                        "type": "array",
                        "items": strict(
                            ["sourceLabels", "targetLabel"],
                            sourceLabels={"type": "array", "items": TEXT},
                            targetLabel=TEXT,
                        ),
                    },
                ),
            },
        ),
    ),
    "PrometheusRule": custom(
        "PrometheusRule",
        strict(
            ["groups"],
            groups={
                "type": "array",
                "minItems": 1,
                "items": strict(
                    ["name", "rules"],
                    name=TEXT,
                    rules={
                        "type": "array",
                        "minItems": 1,
                        "items": strict(
                            ["alert", "expr", "labels", "annotations"],
                            alert={"type": "string", "pattern": "^Narrowcast[A-Za-z]+$"},
                            expr=TEXT,
                            **{"for": DURATION},
                            labels=strict(["severity"], severity={"enum": ["critical", "warning", "info"]}),
                            annotations=strict(["summary", "description"], summary=TEXT, description=TEXT),
                        ),
                    },
                ),
            },
        ),
    ),
}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_valid(render, folder, version):
    objects = render(folder)
    for found in objects:
        if found["kind"] in PROMETHEUS:
            jsonschema.validate(found, PROMETHEUS[found["kind"]])
        else:
            kubernetes_validate.validate(found, version, strict=True)
    names = [(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))


def test_an_unknown_field_is_found(render):
    (store,) = of_kind(render("overlays/minimal"), "StatefulSet")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**store, "spec": {**store["spec"], "replica": 1}}, "1.37", strict=True)


@pytest.mark.parametrize("folder", ["overlays/minimal", "overlays/gpu"])
def test_overlays_need_no_custom_resource(render, folder):
    """They can be applied to an empty cluster."""
    builtin = {"v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"}
    assert {found["apiVersion"] for found in render(folder)} <= builtin


@pytest.mark.parametrize("folder", FOLDERS)
def test_labels(render, folder):
    for found in render(folder):
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "narrowcast"
        assert labels["app.kubernetes.io/managed-by"] == "kustomize"
        assert labels["app.kubernetes.io/component"]


def of_kind(objects, *kinds):
    return [found for found in objects if found["kind"] in kinds]


@pytest.mark.parametrize("folder", ["overlays/minimal", "overlays/gpu"])
def test_pods_are_restricted(render, folder):
    workloads = of_kind(render(folder), "StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob", "Pod")
    assert workloads
    for found in workloads:
        pod = found["spec"]["template"]["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(volume.keys() & {"configMap", "secret", "emptyDir"} for volume in pod["volumes"])
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys()
            assert all("hostPort" not in port for port in container.get("ports", []))


@pytest.mark.parametrize("folder", ["overlays/minimal", "overlays/gpu"])
def test_namespace_enforces_restricted(render, folder):
    (namespace,) = of_kind(render(folder), "Namespace")
    assert namespace["metadata"]["name"] == "narrowcast"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", ["overlays/minimal", "overlays/gpu"])
def test_redis_is_where_the_online_store_is_looked_for(render, folder):
    objects = render(folder)
    (service,) = of_kind(objects, "Service")
    (store,) = of_kind(objects, "StatefulSet")
    assert (service["metadata"]["name"], service["metadata"]["namespace"]) == ("redis", "narrowcast")
    assert service["spec"]["ports"][0]["port"] == 6379
    assert service["spec"]["selector"].items() <= store["spec"]["template"]["metadata"]["labels"].items()
    (config,) = [
        volume["configMap"] for volume in store["spec"]["template"]["spec"]["volumes"] if "configMap" in volume
    ]
    assert config["name"] in {found["metadata"]["name"] for found in of_kind(objects, "ConfigMap")}
    assert store["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_gpu_check_asks_for_a_gpu(render):
    (check,) = of_kind(render("overlays/gpu"), "Job")
    pod = check["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"narrowcast:{__version__}-gpu"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_in_a_manifest(render, folder):
    assert not of_kind(render(folder), "Secret")


def test_secrets_are_templates_and_git_takes_no_value():
    tracked = subprocess.run(["git", "ls-files", "k8s"], cwd=K8S.parent, capture_output=True, text=True, check=True)
    assert all(name.endswith(".example.env") for name in tracked.stdout.split() if name.endswith(".env"))
    examples = sorted((K8S / "secrets").glob("*.example.env"))
    assert len(examples) == 2
    for example in examples:
        for line in example.read_text().splitlines():
            assert line.startswith("#") or line.endswith("=")
        filled = example.with_name(example.name.replace(".example", ""))
        assert subprocess.run(["git", "check-ignore", "-q", filled], cwd=K8S.parent, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_secrets_hold_the_keys_that_are_asked_for(tmp_path):
    """The steps read AWS_*; KServe's storage initialiser reads the endpoint and the region under names of its own."""
    shutil.copytree(K8S / "secrets", tmp_path / "secrets")
    for example in (tmp_path / "secrets").glob("*.example.env"):
        text = example.read_text().replace("=\n", "=x\n")
        example.with_name(example.name.replace(".example", "")).write_text(text)
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "secrets"], capture_output=True, text=True, check=True)
    secrets = list(yaml.safe_load_all(done.stdout))
    keys = {
        "narrowcast-s3": {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ENDPOINT_URL",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "S3_ENDPOINT",
        },
        "narrowcast-redis": {"password"},
    }
    assert {(found["metadata"]["namespace"], found["metadata"]["name"]) for found in secrets} == {
        (namespace, name) for namespace in ("narrowcast", "kubeflow") for name in keys
    }
    for found in secrets:
        kubernetes_validate.validate(found, "1.37", strict=True)
        assert found["data"].keys() == keys[found["metadata"]["name"]]
