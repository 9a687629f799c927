"""checkov on what kubectl renders; its exceptions, each with its reason, are in k8s/.checkov.yaml."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

K8S = Path(__file__).parents[2] / "k8s"
CHECKOV = shutil.which("checkov") or shutil.which("checkov", path=str(Path(sys.prefix) / "checkov" / "bin"))


def rendered(folder: str) -> str:
    return subprocess.run(["kubectl", "kustomize", K8S / folder], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not CHECKOV, reason="checkov is not installed (in a virtual environment of its own: see .ci/run)")
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_clean_and_a_fault_is_found(tmp_path):
    texts = {"minimal": rendered("overlays/minimal"), "gpu": rendered("overlays/gpu")}
    texts["broken"] = texts["minimal"].replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    command = [CHECKOV, "--config-file", K8S / ".checkov.yaml", "--output", "json", "--directory", tmp_path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    failed = defaultdict(set)
    for check in found["results"]["failed_checks"]:
        failed[Path(check["file_path"]).stem].add((check["check_id"], check["resource"]))
    assert failed == {"broken": {("CKV_K8S_22", "StatefulSet.narrowcast.redis")}}
    assert found["summary"]["passed"] > 400
    assert found["summary"]["parsing_errors"] == 0
