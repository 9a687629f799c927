"""Alerts speak of metrics that exist, and every alert can be looked up."""

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from narrowcast.components.serve import metrics  # noqa: F401  registers the server's metrics

ROOT = Path(__file__).parents[3]
OTHERS = {
    "up": "Prometheus",
    "kube_statefulset_status_replicas_ready": "kube-state-metrics",
    "kube_pod_container_status_restarts_total": "kube-state-metrics",
    "kube_pod_container_resource_limits": "kube-state-metrics",
    "kube_pod_status_unschedulable": "kube-state-metrics",
    "kube_pod_status_phase": "kube-state-metrics",
    "container_memory_working_set_bytes": "cAdvisor in the kubelet",
    "kubelet_volume_stats_available_bytes": "the kubelet",
    "kubelet_volume_stats_capacity_bytes": "the kubelet",
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.fixture(scope="module")
def rules(render):
    (found,) = [found for found in render("monitoring") if found["kind"] == "PrometheusRule"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def own_names():
    return {family.name + suffix for family in REGISTRY.collect() for suffix in SUFFIXES.get(family.type, ())}


def test_metrics_exist(rules):
    known = own_names() | OTHERS.keys()
    for rule in rules:
        text = re.sub(r'"[^"]*"', "", rule["expr"])
        named = set(re.findall(r"\b(?:narrowcast|request|kube|kubelet|container)_\w+|\bup\b", text))
        assert named
        assert named <= known, rule["alert"]


def test_labels_exist(rules):
    """A label that a rule sums or selects the server's metrics by is one that the metric or the scrape has."""
    by_scrape = {"inferenceservice", "namespace", "pod", "service", "le"}
    by_metric = {"status", "owner", "key", "version"}
    collectors = {
        metrics.REQUESTS: "status",
        metrics.FALLBACKS: "owner",
        metrics.IDS: "key",
        metrics.MODEL_INFO: "version",
    }
    assert all(label in collector._labelnames for collector, label in collectors.items())
    for rule in rules:
        if "narrowcast_" in rule["expr"].replace('"narrowcast_', ""):
            used = set(re.findall(r"(\w+)\s*=~?\s*\"", rule["expr"]))
            for group in re.findall(r"by \(([^)]*)\)", rule["expr"]):
                used |= {label.strip() for label in group.split(",")}
            assert used <= by_scrape | by_metric, rule["alert"]


def test_predictors_are_scraped(render):
    service, monitor = (found for found in render("monitoring") if found["kind"] in ("Service", "ServiceMonitor"))
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"] == "narrowcast"


def test_every_alert_is_explained(rules):
    page = ROOT / "docs" / "operations.md"
    text = page.read_text()
    assert [rule["alert"] for rule in rules if rule["alert"] not in text] == []
