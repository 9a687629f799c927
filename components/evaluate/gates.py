"""The gates between a packed model and its endpoint. A gate never raises for a bad model: it fails with a sentence."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from narrowcast.components.compact.pack import LOSSLESS_BOUND, data_bytes
from narrowcast.components.data.encoded import EncodedData, Split
from narrowcast.components.data.schema import Schema
from narrowcast.components.evaluate import served
from narrowcast.components.evaluate.bootstrap import auc_difference_interval
from narrowcast.components.evaluate.champion import fetched_champion
from narrowcast.components.evaluate.scores import (
    Attempt,
    NoChampionError,
    champion_scores,
    checkpoint_scores,
    packed_scores,
    sentence,
)
from narrowcast.components.serve import process
from narrowcast.components.train.metrics import all_metrics, auc, calibration_curve
from narrowcast.components.train.plan import Plan
from narrowcast.records import StepRecord, digest, read_json, write_json, writing_directory

SERVED_BOUND = 1e-6
"""Largest difference in probability between the packed model in this process and over HTTP (our choice)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """`value`, at most `limit` where the gate passes; None where there was nothing to measure, or it failed."""

    name: str
    value: float | None
    limit: float
    passed: bool
    sentence: str


def evaluate(
    *,
    encoded: str,
    frame: str,
    full_model: str,
    compact_model: str,
    packed_model: str,
    feature_store: str,
    plan: str,
    champion: str,
    max_auc_loss: float,
    max_latency_ms: float,
    seed: int,
    target: str,
) -> None:
    """Judge the packed model by every gate; write `evaluation.json` and `metrics.json` (docs/architecture.md)."""
    test = EncodedData(encoded).split("test")
    rows = pd.read_parquet(Path(frame) / "frame.parquet", filters=[("split", "==", "test")])
    rows = rows.set_index("row_id", drop=False).loc[test.row_id_B]
    packed = Path(packed_model)
    budget = read_json(Path(plan) / "search.json")["budget_bytes"]
    with Console(stderr=True).status("Scoring the test rows"), fetched_champion(champion) as serving:
        scores = {
            "full": Attempt(lambda: checkpoint_scores(full_model, test)),
            "compact": Attempt(lambda: checkpoint_scores(compact_model, test)),
            "packed": Attempt(lambda: packed_scores(packed_model, test)),
            "champion": Attempt(lambda: champion_scores(serving, packed_model, rows)),
        }
        champion_md5 = digest(serving) if serving and Path(serving).is_dir() else None
        gates = [
            _gate("quality_full", max_auc_loss, lambda: _quality_full(test, scores)),
            _gate("quality_champion", max_auc_loss, lambda: _quality_champion(test, scores, seed)),
            _gate("bytes", budget, lambda: _bytes(packed)),
            _gate("parity_packed", _parity_bound(packed), lambda: _parity_packed(scores)),
        ]
    with _server(packed, Path(feature_store)) as server:
        latency = Attempt(lambda: served.latency(server.get(), Schema.load(packed / "schema.yaml"), rows))
        gates += [
            _gate("latency", max_latency_ms, lambda: _latency(latency)),
            _gate("parity_served", SERVED_BOUND, lambda: _parity_served(server, packed, rows, scores)),
            _gate("server", SERVED_BOUND, lambda: _server_answers(server, packed)),
        ]
    latency_ms = {} if latency.failure else latency.get()
    metrics = {name: _metrics(test, found) for name, found in scores.items()}
    curve = Attempt(lambda: calibration_curve(test.label_B, scores["packed"].get()))
    result = {
        "passed": all(gate.passed for gate in gates),
        "gates": [asdict(gate) for gate in gates],
        "metrics": metrics,
        "champion_md5": champion_md5,
        "calibration_curve": [] if curve.failure else curve.get(),
        "latency_ms": latency_ms,
        "bytes": {
            "full": Plan.load(Path(plan) / "plan.json").full_bytes(),
            "packed": next(gate.value for gate in gates if gate.name == "bytes"),
            "budget": budget,
        },
    }
    flat = {f"{key}_{name}": value for name, found in metrics.items() for key, value in (found or {}).items()}
    flat |= {f"bytes_{name}": value for name, value in result["bytes"].items() if value is not None}
    flat |= {f"latency_{name}_ms": latency_ms[name] for name in ("p50", "p99") if latency_ms}
    with writing_directory(target) as folder:
        write_json(folder / "evaluation.json", result)
        write_json(folder / "metrics.json", flat)
        StepRecord(step="evaluate", rows_in=len(test), rows_out=len(test), metrics=flat).save(folder)


def _gate(name: str, limit: float, measure: Callable[[], tuple[float | None, str]]) -> Gate:
    """A measure of None passes: there was nothing to hold against the limit, and the sentence says why."""
    try:
        value, text = measure()
    except Exception as error:  # a bad model may fail in any way
        return Gate(name=name, value=None, limit=limit, passed=False, sentence=sentence(error))
    if value is None:
        return Gate(name=name, value=None, limit=limit, passed=True, sentence=text)
    passed = bool(value <= limit)
    text = f"{text}, {'within' if passed else 'over'} the limit of {_figure(limit)}"
    return Gate(name=name, value=value if math.isfinite(value) else None, limit=limit, passed=passed, sentence=text)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _quality_full(test: Split, scores: Mapping[str, Attempt]) -> tuple[float, str]:
    full, packed = (auc(test.label_B, scores[name].get()) for name in ("full", "packed"))
    return full - packed, f"test AUC is {full:.4f} full and {packed:.4f} packed, a loss of {full - packed:.4f}"


def _quality_champion(test: Split, scores: Mapping[str, Attempt], seed: int) -> tuple[float | None, str]:
    """The AUC that the challenger loses to the champion for certain: the interval's least loss."""
    packed = scores["packed"].get()
    try:
        champion = scores["champion"].get()
    except NoChampionError as error:
        return None, str(error)
    difference = auc(test.label_B, packed) - auc(test.label_B, champion)
    low, high = auc_difference_interval(test.label_B, packed, champion, seed=seed)
    text = f"test AUC is {difference:+.4f} from the champion's, 95 % interval {low:+.4f} to {high:+.4f}"
    return 0.0 - high, f"{text}: the certain loss is {max(0.0, 0.0 - high):.4f}"


def _bytes(packed: Path) -> tuple[int, str]:
    stored = data_bytes(packed / "tables.safetensors")
    return stored, f"the packed tables weigh {stored:,} bytes"


def _parity_bound(packed: Path) -> float:
    """The manifest's bound; without a readable manifest there is nothing to forgive."""
    bound = Attempt(lambda: float(read_json(packed / "manifest.json")["parity"]["bound"]))
    return LOSSLESS_BOUND if bound.failure else bound.get()


def _parity_packed(scores: Mapping[str, Attempt]) -> tuple[float, str]:
    difference = float(np.abs(scores["packed"].get() - scores["compact"].get()).max(initial=0.0))
    return difference, f"packed and retrained probabilities differ by at most {difference:.3g}"


def _latency(latency: Attempt) -> tuple[float, str]:
    found = latency.get()
    return found["p50"], f"ranking {found['candidates']} candidates over HTTP takes {found['p50']:.1f} ms (median)"


def _parity_served(
    server: Attempt, packed: Path, rows: pd.DataFrame, scores: Mapping[str, Attempt]
) -> tuple[float, str]:
    schema = Schema.load(packed / "schema.yaml")
    difference, compared = served.parity(server.get(), schema, rows, scores["packed"].get())
    return difference, f"served and packed probabilities of {compared:,} test rows differ by at most {difference:.3g}"


def _server_answers(server: Attempt, packed: Path) -> tuple[float, str]:
    difference = served.sample_difference(server.get(), read_json(packed / "sample_request.json"))
    return difference, f"the server boots, and its sample scores differ by {difference:.3g} from the expected"


def _metrics(test: Split, scores: Attempt) -> dict[str, float] | None:
    found = Attempt(lambda: all_metrics(test.label_B, scores.get(), test.group_B))
    if found.failure or not all(map(math.isfinite, found.get().values())):
        return None
    return found.get()


@contextmanager
def _server(packed: Path, store: Path) -> Iterator[Attempt]:
    """A server of the packed model on a free port, or why there is none; it is stopped at the end, always."""
    with TemporaryDirectory() as folder:
        server = Attempt(lambda: process.start(packed, store, Path(folder) / "server.log", outlive=False))
        try:
            yield server
        finally:
            if not server.failure:
                process.stop(server.get().pid)
