"""The report page from artifacts written as the steps write them."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from narrowcast.components.data.schema import Schema
from narrowcast.components.report.page import write_report
from narrowcast.components.report.run import STEPS
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, read_json, write_json

MD5 = "0123456789abcdef0123456789abcdef"
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}
ROWS = {
    "user_id": 753,
    "gender": 3,
    "occupation": 22,
    "zip_code": 96,
    "item_id": 1616,
    "release_year": 72,
    "genres": 20,
}


def make_plan() -> Plan:
    def blocks(*parts: tuple[int, tuple[int, ...], int]) -> tuple[Block, ...]:
        starts = [0, *(stop for stop, _, _ in parts)]
        return tuple(
            Block(start=start, stop=stop, columns=columns, bits=bits)
            for start, (stop, columns, bits) in zip(starts, parts, strict=False)
        )

    first = tuple(range(16))
    tables = {
        "user_id": TablePlan(rows=753, blocks=blocks((200, (0, 1, 4, 7, 8, 12), 8), (640, (0, 4, 7), 8))),
        "gender": TablePlan(rows=3, blocks=blocks((3, first[:4], 32))),
        "occupation": TablePlan(rows=22, blocks=blocks((22, first[:4], 8)), projection=4),
        "zip_code": TablePlan(rows=96, blocks=blocks((96, (), 8))),
        "item_id": TablePlan(rows=1616, blocks=blocks((160, first, 8), (800, (0, 2, 3, 5, 9), 8), (1500, (2, 9), 4))),
        "release_year": TablePlan(rows=72, blocks=blocks((40, (1, 3), 8))),
        "genres": TablePlan(rows=20, blocks=blocks((20, first[:8], 4))),
    }
    return Plan(width=16, tables=tables, method="pep", parameters={"granularity": "row", "threshold": -4.5})


def write_run(folder: Path) -> dict[str, str]:
    """Every artifact of a run that ended well, as far as the report reads it."""
    plan, full = make_plan(), full_plan(ROWS, 16)
    artifacts = {step: str(folder / step) for step in STEPS}
    seconds = (0.42, 2.913, 6.2, 9.71, 5.4, 1.8, 41.37, 48.2, 33.06, 2.4, 14.9, 7.7)
    rows = dict.fromkeys(STEPS, (99_988, 99_988)) | {"checkout": (0, 0), "deploy": (0, 0), "evaluate": (9_999, 9_999)}
    rows["validate_raw"] = (100_000, 99_988)
    rows["ingest"] = (100_000, 100_000)
    for step, took in zip(STEPS, seconds, strict=True):
        taken, given = rows[step]
        refused = {"column 'age' has values over 120": taken - given} if taken != given else {}
        metrics = {"stored_bytes": 12345.0, "ratio": 9.87} if step == "compact" else {}
        record = StepRecord(step=step, rows_in=taken, rows_out=given, refused=refused, metrics=metrics)
        record.save(folder / step)
        written = read_json(folder / step / "step.json")
        write_json(folder / step / "step.json", {**written, "seconds": took})

    def metrics_of(auc: float, stored: int, best: int) -> dict:
        curves = [
            {
                "epoch": epoch,
                "train_logloss": 0.68 - 0.024 * epoch - (0.68 - auc) * 0.1,
                "validation_auc": auc - 0.003 * (epoch - best) ** 2,
                "validation_logloss": 0.571 + 0.0035 * (epoch - best) ** 2,
            }
            for epoch in range(1, 7)
        ]
        scores = {"auc": auc, "logloss": 0.57, "gauc": auc - 0.02, "normalised_entropy": 0.84, "calibration": 1.012}
        return {
            "validation": scores,
            "test": scores,
            "curves": curves,
            "best_epoch": best,
            "stored_bytes": stored,
            "full_bytes": full.stored_bytes(),
            "resumed_from_epoch": None,
        }

    write_json(folder / "train" / "metrics.json", metrics_of(0.7712, full.stored_bytes(), 4))
    write_json(folder / "retrain" / "metrics.json", metrics_of(0.7703, plan.stored_bytes(), 5))
    plan.save(folder / "search" / "plan.json")
    budget = full.stored_bytes() // 10
    trials = [("row, -4.5", plan.stored_bytes(), 0.7691), ("field, -4", 15_900, 0.7655), ("row, -6", 9_120, 0.7612)]
    references = [("width 2, 32 bits", 20_656, 0.7588), ("width 16, 8 bits", 46_476, 0.7706)]
    search = {
        "budget_bytes": budget,
        "trials": [{"name": n, "bytes": b, "validation_auc": a} for n, b, a in trials],
        "references": [{"name": n, "bytes": b, "validation_auc": a} for n, b, a in references],
    }
    write_json(folder / "search" / "search.json", search)
    drift = {
        "fields": [
            {
                "name": name,
                "type": kind,
                "psi": psi,
                "ks": None if unseen is not None else 0.1,
                "unseen_share": unseen,
                "limit": 1.0,
                "unseen_limit": 0.9,
                "passed": True,
            }
            for name, kind, psi, unseen in (
                ("user_id", "categorical", 0.412, 0.731),
                ("item_id", "categorical", 0.0872, 0.0213),
                ("genres", "sequence", 0.0061, 0.0),
                ("release_year", "categorical", 0.031, 0.0009),
                ("age", "numeric", 0.0932, None),
                ("user_events", "numeric", 0.771, None),
                ("item_click_rate", "numeric", 0.1204, None),
            )
        ]
    }
    write_json(folder / "validate_frame" / "drift.json", drift)
    manifest = {
        "format": 1,
        "schema": "ml_100k",
        "plan_bytes": plan.stored_bytes(),
        "full_bytes": full.stored_bytes(),
        "parity": {"max_difference": 0.0031, "bound": 0.0062},
        "md5": {"plan.json": MD5, "tables.safetensors": MD5[::-1]},
        "versions": {"narrowcast": "0.1.0", "torch": "2.13.0"},
    }
    write_json(folder / "compact" / "manifest.json", manifest)
    scores = {"auc": 0.7584, "logloss": 0.5821, "gauc": 0.7211, "normalised_entropy": 0.8612, "calibration": 1.0123}
    gates = [
        ("quality_full", "test AUC is 0.7577 packed and 0.7584 full: the loss of 0.0007 is within the limit of 0.005"),
        ("quality_champion", "no champion is deployed, so there is nothing to fall behind"),
        ("bytes", f"the packed tables weigh {plan.stored_bytes()} bytes, within the budget of {budget}"),
        ("parity_packed", "packed and retrained probabilities differ by at most 0.00311, within the manifest's bound of 0.00622"),
        ("latency", "ranking 100 candidates over HTTP takes 7.1 ms in the median, within the limit of 200 ms"),
        ("parity_served", "served and packed probabilities of 2000 test rows differ by at most 5.96e-08, within the bound of 1e-06"),
        ("server", "the server boots and answers its sample request 0 from the expected probabilities, within the bound of 0.00622"),
    ]
    limits = {"quality_full": 0.005, "bytes": budget, "latency": 200.0}
    curve = [(0.12, 0.14), (0.26, 0.27), (0.35, 0.33), (0.44, 0.45), (0.52, 0.5), (0.59, 0.6), (0.66, 0.64), (0.73, 0.74), (0.8, 0.78), (0.9, 0.88)]
    evaluation = {
        "passed": True,
        "gates": [
            {"name": n, "value": 7.1, "limit": limits.get(n), "passed": True, "sentence": sentence} for n, sentence in gates
        ],
        "metrics": {
            "full": scores,
            "compact": scores | {"auc": 0.7579},
            "packed": scores | {"auc": 0.7577},
            "champion": None,
        },
        "calibration_curve": [{"predicted": p, "observed": o, "rows": 1000} for p, o in curve],
        "latency_ms": {"p50": 7.113, "p90": 8.02, "p99": 12.94, "candidates": 100, "requests": 50},
        "bytes": {"full": full.stored_bytes(), "packed": plan.stored_bytes(), "budget": budget},
    }
    write_json(folder / "evaluate" / "evaluation.json", evaluation)
    deployment = {
        "endpoint": "default",
        "deployed": True,
        "kept_champion": False,
        "url": "http://127.0.0.1:43117",
        "model_md5": MD5,
        "reason": "every gate passed and the server answered its sample request",
    }
    write_json(folder / "deploy" / "deployment.json", deployment)
    return artifacts
