"""Rights on the API: only those that something uses, given only to the accounts that need them."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
USES = yaml.safe_load((ROOT / "k8s" / "verbs.yaml").read_text())
OVERLAYS = ["overlays/minimal", "overlays/gpu"]
CALL = re.compile(r"(create|read|get|list|patch|replace|delete)_(namespaced|cluster)_\w+$")


def grants(role):
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield f"{group}/{resource}".lstrip("/"), verb


def of_kind(objects, *kinds):
    return [found for found in objects if found["kind"] in kinds]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_roles_grant_what_is_listed_as_used(render, folder):
    roles = of_kind(render(folder), "Role")
    assert {role["metadata"]["name"] for role in roles} == USES.keys()
    for role in roles:
        listed = [(use["resource"], use["verb"]) for use in USES[role["metadata"]["name"]]]
        assert sorted(grants(role)) == sorted(set(listed))


@pytest.mark.parametrize("folder", OVERLAYS)
def test_nothing_is_granted_in_the_whole_cluster_or_by_a_wildcard(render, folder):
    objects = render(folder)
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    for role in of_kind(objects, "Role"):
        assert not [rule for rule in role["rules"] if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]]
        secrets = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
        assert all(rule["verbs"] == ["get"] and rule["resourceNames"] for rule in secrets)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_only_steps_have_rights_and_a_token(render, folder):
    objects = render(folder)
    rights = defaultdict(set)
    for binding in of_kind(objects, "RoleBinding"):
        assert binding["roleRef"]["kind"] == "Role"
        for subject in binding["subjects"]:
            account = (subject["namespace"], subject["name"])
            rights[account].add((binding["metadata"]["namespace"], binding["roleRef"]["name"]))
    launch, kfp, deploy = "narrowcast-launch", "narrowcast-kfp", ("narrowcast", "narrowcast-deploy")
    assert rights == {
        ("narrowcast", "narrowcast-pipeline"): {("narrowcast", launch), ("narrowcast", kfp), deploy},
        ("kubeflow", "narrowcast-pipeline"): {("kubeflow", launch), ("kubeflow", kfp), deploy},
        ("kubeflow", "pipeline-runner"): {("kubeflow", launch), deploy},
    }
    tokens = {
        (found["metadata"]["namespace"], found["metadata"]["name"]): found["automountServiceAccountToken"]
        for found in of_kind(objects, "ServiceAccount")
    }
    assert tokens == {
        ("narrowcast", "narrowcast-pipeline"): True,
        ("narrowcast", "narrowcast-ray"): False,
        ("narrowcast", "narrowcast-predictor"): False,
        ("narrowcast", "redis"): False,
        ("kubeflow", "narrowcast-pipeline"): True,
        ("kubeflow", "narrowcast-ray"): False,
    }


@pytest.mark.parametrize("folder", OVERLAYS)
def test_kserve_finds_the_storage_credentials(render, folder):
    (account,) = [
        found
        for found in of_kind(render(folder), "ServiceAccount")
        if found["metadata"]["name"] == "narrowcast-predictor"
    ]
    assert account["secrets"] == [{"name": "narrowcast-s3"}]


@pytest.fixture(scope="module")
def calls():
    """The Kubernetes client's methods that the steps' code names, by file."""
    found = {}
    for path in sorted((ROOT / "components").rglob("*.py")):
        tree = ast.parse(path.read_text())
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and CALL.match(node.attr)}
        if named:
            found[str(path.relative_to(ROOT))] = named
    return found


def test_every_listed_use_is_in_the_code(calls):
    for uses in USES.values():
        for use in uses:
            assert "by" in use or use["call"] in calls.get(use["file"], ()), use


def test_every_call_is_listed(calls):
    listed = {(use["file"], use["call"]) for uses in USES.values() for use in uses if "file" in use}
    assert {(file, call) for file, named in calls.items() for call in named} <= listed
