"""Who may open a connection to whom, by a reading of the network policies as Kubernetes defines them."""

import ipaddress
from dataclasses import dataclass, field

import pytest

KFP = {"pipelines.kubeflow.org/v2_component": "true"}
OURS = {"app.kubernetes.io/part-of": "narrowcast"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    namespace: str
    labels: dict[str, str] = field(default_factory=dict)


ADDRESSES = {"the internet": "52.216.0.1", "the machine's credentials": "169.254.169.254", "node DNS": "169.254.20.10"}
PODS = {
    "predictor": Pod(namespace="narrowcast", labels={**OURS, "app.kubernetes.io/component": "predictor"}),
    "redis": Pod(namespace="narrowcast", labels={**OURS, "app.kubernetes.io/component": "online-store"}),
    "ray": Pod(namespace="kubeflow", labels={**OURS, "app.kubernetes.io/component": "ray"}),
    "ray in narrowcast": Pod(namespace="narrowcast", labels={**OURS, "app.kubernetes.io/component": "ray"}),
    "another ray": Pod(namespace="kubeflow", labels={"ray.io/is-ray-node": "yes"}),
    "step": Pod(namespace="kubeflow", labels=KFP),
    "step in narrowcast": Pod(namespace="narrowcast", labels=KFP),
    "stranger": Pod(namespace="narrowcast"),
    "stranger in kubeflow": Pod(namespace="kubeflow"),
    "stranger elsewhere": Pod(namespace="default", labels=OURS),
    "gateway": Pod(namespace="envoy-gateway-system"),
    "activator": Pod(namespace="knative-serving"),
    "prometheus": Pod(namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"}),
    "operator": Pod(namespace="kuberay-system", labels={"app.kubernetes.io/component": "kuberay-operator"}),
    "seaweedfs": Pod(namespace="kubeflow", labels={"app": "seaweedfs"}),
    "minio": Pod(namespace="storage"),
    "kfp": Pod(namespace="kubeflow"),
    "dns": Pod(namespace="kube-system", labels={"k8s-app": "kube-dns"}),
}


def selects(selector, labels):
    tests = {
        "In": lambda rule: labels.get(rule["key"]) in rule["values"],
        "NotIn": lambda rule: labels.get(rule["key"]) not in rule["values"],
        "Exists": lambda rule: rule["key"] in labels,
        "DoesNotExist": lambda rule: rule["key"] not in labels,
    }
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        tests[rule["operator"]](rule) for rule in selector.get("matchExpressions", [])
    )


def is_peer(peer, namespace, other):
    if "ipBlock" in peer:
        if isinstance(other, Pod):
            return False  # what a block says of pods depends on the network plugin
        within = [
            ipaddress.ip_address(other) in ipaddress.ip_network(cidr) for cidr in peer["ipBlock"].get("except", [])
        ]
        return ipaddress.ip_address(other) in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(within)
    if not isinstance(other, Pod):
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def lets(policies, pod, other, port, direction, peers):
    """Whether the policies that select a pod let a connection pass; where none does, everything passes."""
    if not isinstance(pod, Pod):
        return True
    found = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    return not found or any(
        any(is_peer(peer, pod.namespace, other) for peer in rule[peers])
        and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        for policy in found
        for rule in policy["spec"].get(direction.lower(), [])
    )


def may(policies, source, target, port):
    one, other = ({**PODS, **ADDRESSES}[name] for name in (source, target))
    return lets(policies, one, other, port, "Egress", "to") and lets(policies, other, one, port, "Ingress", "from")


@pytest.fixture(scope="module", params=["overlays/minimal", "overlays/gpu"])
def policies(render, request):
    return [found for found in render(request.param) if found["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("predictor", "redis", 6379),
        ("predictor", "seaweedfs", 8333),
        ("predictor", "minio", 9000),
        ("predictor", "the internet", 443),
        ("predictor", "dns", 53),
        ("predictor", "node DNS", 53),
        ("gateway", "predictor", 8080),
        ("activator", "predictor", 8012),
        ("activator", "predictor", 9090),
        ("prometheus", "predictor", 8080),
        ("step", "predictor", 8080),
        ("step", "redis", 6379),
        ("step", "seaweedfs", 8333),
        ("step", "the internet", 443),
        ("step in narrowcast", "predictor", 8080),
        ("step in narrowcast", "redis", 6379),
        ("step in narrowcast", "kfp", 8887),
        ("step in narrowcast", "the internet", 6443),
        ("ray", "ray", 6379),
        ("ray", "ray", 10002),
        ("ray", "seaweedfs", 8333),
        ("ray", "the internet", 443),
        ("ray", "dns", 53),
        ("operator", "ray", 8265),
        ("operator", "ray in narrowcast", 8265),
        ("another ray", "stranger in kubeflow", 80),
    ],
)
def test_may(policies, source, target, port):
    assert may(policies, source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("stranger", "redis", 6379),
        ("stranger elsewhere", "redis", 6379),
        ("stranger in kubeflow", "redis", 6379),
        ("gateway", "redis", 6379),
        ("ray", "redis", 6379),
        ("redis", "the internet", 443),
        ("redis", "predictor", 8080),
        ("predictor", "the internet", 80),
        ("predictor", "the machine's credentials", 80),
        ("predictor", "the machine's credentials", 443),
        ("predictor", "kfp", 8888),
        ("predictor", "ray", 8265),
        ("stranger", "predictor", 8080),
        ("stranger elsewhere", "predictor", 8080),
        ("stranger", "the internet", 443),
        ("gateway", "predictor", 6379),
        ("stranger in kubeflow", "ray", 8265),
        ("another ray", "ray", 6379),
        ("stranger elsewhere", "ray", 10001),
        ("operator", "ray", 6379),
        ("ray", "the machine's credentials", 443),
        ("ray", "ray in narrowcast", 6379),
        ("ray", "kfp", 8888),
        ("step in narrowcast", "the machine's credentials", 443),
    ],
)
def test_may_not(policies, source, target, port):
    assert not may(policies, source, target, port)
