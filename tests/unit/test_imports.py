"""Imports run one way, faces stay light, and the package is imported under one name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACES = sorted((ROOT / "components").glob("*/component.py"))
LIGHT = {"kfp", "typer", "rich", "yaml", "narrowcast"}
ALLOWED = {
    "data": set(),
    "validate": {"data"},
    "features": {"data"},
    "train": {"data"},
    "search": {"data", "train"},
    "compact": {"data", "train", "search"},
    "serve": {"data", "features", "train", "compact"},
    "evaluate": {"data", "features", "train", "search", "compact", "serve"},
    "report": {"data", "train"},
}


def imports(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    "path", [*FACES, *(ROOT / "pipelines").glob("*.py")], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_faces_and_pipelines_are_light(path):
    for module in imports(path, top_only=True):
        top = module.split(".")[0]
        assert top in LIGHT or top in sys.stdlib_module_names, f"{path} imports {module} at module top"
        if module.startswith("narrowcast.components"):
            assert module.endswith(".component"), f"{path} imports {module} at module top"


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_components_import_one_way(folder):
    for path in (ROOT / "components" / folder).rglob("*.py"):
        for module in imports(path, top_only=False):
            assert not module.startswith("narrowcast.pipelines"), f"{path} imports {module}"
            if module.startswith("narrowcast.components."):
                target = module.split(".")[2]
                assert target in ALLOWED[folder] | {folder}, f"{path} imports {module}"


def test_every_component_folder_has_a_rule():
    assert {path.parent.name for path in FACES} == set(ALLOWED)


def test_one_package_name():
    for path in ROOT.glob("*/**/*.py"):
        if ".venv" in path.parts or path.is_relative_to(ROOT / "narrowcast" / "components"):
            continue
        for module in imports(path, top_only=False):
            assert module.split(".")[0] not in {"components", "pipelines", "feature_repo"}, f"{path} imports {module}"


def test_compiling_and_help_load_nothing_heavy():
    code = (
        "import sys, narrowcast.pipelines.cli, narrowcast.pipelines.graph as g; g.steps(); "
        "heavy = 'torch', 'feast', 'great_expectations', 'ray', 'pandas', 'dvc', 'kserve'; "
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
