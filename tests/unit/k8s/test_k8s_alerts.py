"""Alerts speak of metrics and labels that exist, and every alert can be looked up."""

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from narrowcast.components.serve.batching import Scored
from narrowcast.components.serve.metrics import FOLLOWED, Metrics

ROOT = Path(__file__).parents[3]
SCRAPED = {"namespace", "pod", "service", "inferenceservice"}
OTHERS = {
    "up": set(),
    "kube_statefulset_status_replicas_ready": {"statefulset"},
    "kube_pod_container_status_restarts_total": {"container"},
    "kube_pod_container_resource_limits": {"container", "resource"},
    "kube_pod_status_unschedulable": set(),
    "kube_pod_status_phase": {"phase"},
    "container_memory_working_set_bytes": {"container"},
    "kubelet_volume_stats_available_bytes": {"persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"persistentvolumeclaim"},
}
"""Labels by metric, of Prometheus itself, kube-state-metrics and the kubelet."""


@pytest.fixture(scope="module")
def rules(render):
    (found,) = [found for found in render("monitoring") if found["kind"] == "PrometheusRule"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def labels_of():
    """Labels by metric, of a server that has answered."""
    server = Metrics("test")
    server.answered("rest", 200)
    probability_M = np.array([0.5], np.float32)
    server.scored(Scored(probability_M=probability_M, queue_seconds=0.0, score_seconds=0.0, num_requests=1), 0.01)
    server.ids("item_id", 1, 1)
    server.fallback("user")
    server.follow(lambda: ("version", dict.fromkeys(FOLLOWED, 1.0)))
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    return OTHERS | {sample.name: set(sample.labels) for sample in samples}


def test_metrics_and_labels_exist(rules, labels_of):
    for rule in rules:
        names = re.findall(
            r"\b(?:narrowcast|request|kube|kubelet|container)_\w+|\bup\b", re.sub('".*?"', "", rule["expr"])
        )
        assert names
        assert set(names) <= labels_of.keys(), rule["alert"]
        used = set(re.findall(r'(\w+)\s*=~?\s*"', rule["expr"]))
        for group in re.findall(r"\b(?:by|on)\s*\((.*?)\)", rule["expr"]):
            used |= set(group.replace(" ", "").split(","))
        assert used <= SCRAPED.union(*(labels_of[name] for name in names)), rule["alert"]


def test_predictors_are_scraped(render):
    service, monitor = (found for found in render("monitoring") if found["kind"] in ("Service", "ServiceMonitor"))
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"] == "narrowcast"


def test_every_alert_is_explained(rules):
    text = (ROOT / "k8s" / "monitoring" / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == [rule["alert"] for rule in rules]
