"""Everything the page is made from: the records and results that the steps left in their artifacts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowcast.components.train.plan import Plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import RECORD, StepRecord, read_json

STEPS = (
    "checkout",
    "ingest",
    "validate_raw",
    "features",
    "validate_frame",
    "encode",
    "train",
    "search",
    "retrain",
    "compact",
    "evaluate",
    "deploy",
)
"""In the order of the DAG; the report itself comes last and has no record yet."""

RESULTS = {
    "validate_raw": "validation.json",
    "validate_frame": "validation.json",
    "drift": "drift.json",
    "train": "metrics.json",
    "retrain": "metrics.json",
    "search": "search.json",
    "compact": "manifest.json",
    "evaluate": "evaluation.json",
    "deploy": "deployment.json",
}
"""The file a result is read from, in the artifact of the step of that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run as it lies on disk; what is missing is None, and `missing` names the file."""

    records: dict[str, StepRecord | None]
    results: dict[str, Any]
    plan: Plan | None
    missing: tuple[str, ...]

    @classmethod
    def read(cls, artifacts: Mapping[str, str]) -> "Run":
        """`artifacts`: a folder by step name. Raises NarrowcastError on a file that is there and cannot be read."""
        missing: list[str] = []

        def find(step: str, name: str) -> Path | None:
            path = Path(artifacts[step]) / name if step in artifacts else None
            if path is None or not path.is_file():
                missing.append(f"{step}: {name}")
                return None
            return path

        def record(step: str) -> StepRecord | None:
            path = find(step, RECORD)
            try:
                return StepRecord.load(path.parent) if path else None
            except TypeError:
                raise NarrowcastError(f"{path} is no step record: run step '{step}' again") from None

        def result(key: str) -> Any:
            path = find("validate_frame" if key == "drift" else key, RESULTS[key])
            return read_json(path) if path else None

        records = {step: record(step) for step in STEPS}
        results = {key: result(key) for key in RESULTS}
        plan_path = find("search", "plan.json")
        return cls(
            records=records,
            results=results,
            plan=Plan.load(plan_path) if plan_path else None,
            missing=tuple(missing),
        )

    def test_metric(self, model: str, key: str) -> float | None:
        """One figure of `evaluation.json`; None where that model could not be measured."""
        metrics = (self.results["evaluate"] or {}).get("metrics", {}).get(model)
        return metrics[key] if metrics else None
