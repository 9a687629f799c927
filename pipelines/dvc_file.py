"""`dvc.yaml`, written from the pipeline: the same steps, wiring and parameters for `dvc repro`."""

from typing import Any

import yaml

from narrowcast.pipelines.graph import steps
from narrowcast.pipelines.parameters import FOUND

ARTIFACTS = "artifacts"
CODE = ("components", "feature_repo", "narrowcast/errors.py", "narrowcast/records.py", "narrowcast/step.py")

HEADER = "# Written by `narrowcast compile --dvc` from pipelines/training.py; change that, not this.\n"


def dvc_yaml() -> str:
    """The text of dvc.yaml."""
    stages: dict[str, Any] = {}
    for name, step in steps().items():
        needs = [f"{ARTIFACTS}/{output}" for _, output in step.artifacts.values()]
        parameters = sorted(set(step.parameters.values()) - set(FOUND))
        if "schema" in parameters:
            needs.append("${schema}")
        stages[name] = {
            "cmd": f"narrowcast step {name}",
            "deps": [*sorted(needs), *CODE],
            **({"params": parameters} if parameters else {}),
            "outs": [f"{ARTIFACTS}/{output}" for output in step.outputs],
        }
    document = {
        "stages": stages,
        "metrics": [f"{ARTIFACTS}/evaluation/metrics.json"],
        "plots": [
            {
                "learning curves": {
                    "x": {
                        f"{ARTIFACTS}/full_model/metrics.json": "epoch",
                        f"{ARTIFACTS}/compact_model/metrics.json": "epoch",
                    },
                    "y": {
                        f"{ARTIFACTS}/full_model/metrics.json": "validation_auc",
                        f"{ARTIFACTS}/compact_model/metrics.json": "validation_auc",
                    },
                }
            }
        ],
    }
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=120)
