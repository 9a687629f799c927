"""What kubectl makes of the folders under k8s/."""

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[3] / "k8s"


@pytest.fixture(scope="session")
def render() -> Callable[[str], list[dict[str, Any]]]:
    """The objects of a folder under k8s/, by `kubectl kustomize`, which may not warn."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")

    @cache
    def rendered(folder: str) -> list[dict[str, Any]]:
        done = subprocess.run(["kubectl", "kustomize", K8S / folder], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return list(yaml.safe_load_all(done.stdout))

    return rendered
