"""The alert rules in Prometheus' own hands: each fires on what it is for, and not on a healthy day."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[2] / "k8s" / "monitoring" / "alerts.yaml"
POD = 'namespace="narrowcast", service="predictors", pod="ranker-0", inferenceservice="ranker"'
REQUESTS = f"narrowcast_requests_total{{{POD}"
REDIS = 'namespace="narrowcast", pod="redis-0"'
CLAIM = 'namespace="narrowcast", persistentvolumeclaim="data-redis-0"'
STATE = 'namespace="kubeflow", pod="narrowcast-training-x7k2-impl-1"'
HEALTHY = {
    f"up{{{POD}}}": "1x120",
    f'{REQUESTS}, protocol="rest", status="200"}}': "0+6000x120",
    f'{REQUESTS}, protocol="rest", status="400"}}': "0+6x120",
    f'narrowcast_fallbacks_total{{{POD}, owner="user"}}': "0+1x120",
    f'narrowcast_ids_total{{{POD}, key="item_id"}}': "0+6000x120",
    f'narrowcast_unknown_ids_total{{{POD}, key="item_id"}}': "0+600x120",
    f'request_predict_seconds_bucket{{{POD}, le="0.01"}}': "0+6000x120",
    f'request_predict_seconds_bucket{{{POD}, le="+Inf"}}': "0+6000x120",
    f"narrowcast_probability_sum{{{POD}}}": "0+60x120",
    f"narrowcast_probability_count{{{POD}}}": "0+600x120",
    f"narrowcast_failed_swaps_total{{{POD}}}": "0x120",
    f"narrowcast_request_log_dropped_total{{{POD}}}": "0x120",
    f'narrowcast_model_info{{{POD}, version="new"}}': "1x120",
    'kube_statefulset_status_replicas_ready{namespace="narrowcast", statefulset="redis"}': "1x120",
    f"kube_pod_container_status_restarts_total{{{REDIS}}}": "0x120",
    f'container_memory_working_set_bytes{{{REDIS}, container="redis"}}': "40x120",
    f'kube_pod_container_resource_limits{{{REDIS}, resource="memory"}}': "100x120",
    f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": "60x120",
    f"kubelet_volume_stats_capacity_bytes{{{CLAIM}}}": "100x120",
    f'kube_pod_status_phase{{{STATE}, phase="Failed"}}': "0x120",
}
FAULTS = {
    "NarrowcastPredictorDown": {f"up{{{POD}}}": "0x120"},
    "NarrowcastErrors": {f'{REQUESTS}, protocol="grpc", status="INTERNAL"}}': "0+300x120"},
    "NarrowcastOverloaded": {f'{REQUESTS}, protocol="rest", status="503"}}': "0+300x120"},
    "NarrowcastRefusals": {f'{REQUESTS}, protocol="rest", status="400"}}': "0+900x120"},
    "NarrowcastSlow": {
        f'request_predict_seconds_bucket{{{POD}, le="0.01"}}': "0+5000x120",
        f'request_predict_seconds_bucket{{{POD}, le="0.1"}}': "0+5000x120",
        f'request_predict_seconds_bucket{{{POD}, le="0.5"}}': "0+6000x120",
    },
    "NarrowcastFallbacks": {f'narrowcast_fallbacks_total{{{POD}, owner="user"}}': "0+600x120"},
    "NarrowcastUnknownIds": {f'narrowcast_unknown_ids_total{{{POD}, key="item_id"}}': "0+3000x120"},
    "NarrowcastSwapFailed": {f"narrowcast_failed_swaps_total{{{POD}}}": "0x115 1x5"},
    "NarrowcastRequestLogDrops": {f"narrowcast_request_log_dropped_total{{{POD}}}": "0x110 0+5x10"},
    "NarrowcastRedisDown": {
        'kube_statefulset_status_replicas_ready{namespace="narrowcast", statefulset="redis"}': "0x120"
    },
    "NarrowcastRedisRestarts": {f"kube_pod_container_status_restarts_total{{{REDIS}}}": "0x80 0+1x40"},
    "NarrowcastRedisMemoryFull": {f'container_memory_working_set_bytes{{{REDIS}, container="redis"}}': "58x120"},
    "NarrowcastRedisVolumeFull": {f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": "10x120"},
    "NarrowcastPodUnschedulable": {f"kube_pod_status_unschedulable{{{STATE}}}": "1x120"},
    "NarrowcastStepFailed": {f'kube_pod_status_phase{{{STATE}, phase="Failed"}}': "1x120"},
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian package prometheus)")
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    return path


def promtool(*arguments):
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def alerts(rules):
    return [rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]


def firing(rules, cases, at="2h", interval="1m"):
    """The alerts that fire at a time, by case: promtool is told to expect none, and says what it found instead."""
    tests = [
        {
            "name": name,
            "interval": interval,
            "input_series": [{"series": key, "values": values} for key, values in series.items()],
            "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []} for alert in alerts(rules)],
        }
        for name, series in cases.items()
    ]
    path = rules.with_name("cases.yaml")
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": interval, "tests": tests}))
    done = promtool("test", "rules", path)
    found = re.findall(r"name: (\w+),\s*alertname: (\w+),", done.stdout + done.stderr)
    assert found or done.returncode == 0, done.stderr
    return {name: {alert for case, alert in found if case == name} for name in cases}


def test_promtool_takes_the_rules(rules):
    done = promtool("check", "rules", rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_fires_on_its_fault_alone(rules):
    cases = {"Nothing": HEALTHY} | {alert: HEALTHY | fault for alert, fault in FAULTS.items()}
    assert firing(rules, cases) == {"Nothing": set()} | {alert: {alert} for alert in FAULTS}


def test_stale_model(rules):
    info = f"narrowcast_model_info{{{POD}, version="
    same = {f'{info}"old"}}': "1x240"}
    changed = {f'{info}"old"}}': "1x100 _x140", f'{info}"new"}}': "_x100 1x140"}
    found = firing(rules, {"same": same, "changed": changed}, at="9d", interval="1h")
    assert found == {"same": {"NarrowcastModelStale"}, "changed": set()}


def test_moved_scores(rules):
    count = {f"narrowcast_probability_count{{{POD}}}": "0+3000x360"}
    same = count | {f"narrowcast_probability_sum{{{POD}}}": "0+300x360"}
    moved = count | {f"narrowcast_probability_sum{{{POD}}}": "0+300x300 90600+450x60"}
    found = firing(rules, {"same": same, "moved": moved}, at="28h", interval="5m")
    assert found == {"same": set(), "moved": {"NarrowcastScoresMoved"}}


def test_every_alert_is_tried(rules):
    assert set(alerts(rules)) == FAULTS.keys() | {"NarrowcastModelStale", "NarrowcastScoresMoved"}
