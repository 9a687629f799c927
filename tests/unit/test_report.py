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
    splits = {"train": 79_990, "validation": 9_999, "test": 9_999}
    for step, took in zip(STEPS, seconds, strict=True):
        taken, given = rows[step]
        refused = {"column 'age' has values over 120": taken - given} if taken != given else {}
        metrics = {"stored_bytes": 12345.0, "ratio": 9.87} if step == "compact" else {}
        shares = {"rows": splits, "positives": {k: n // 2 for k, n in splits.items()}}
        details = {"encode": shares, "checkout": {"version": MD5}}.get(step, {})
        record = StepRecord(step=step, rows_in=taken, rows_out=given, refused=refused, metrics=metrics, details=details)
        record.save(folder / step)
        written = read_json(folder / step / "step.json")
        write_json(folder / step / "step.json", {**written, "seconds": took})

    def metrics_of(auc: float, stored: int, best: int) -> dict:
        curves = [
            {
                "epoch": epoch,
                "train_logloss": 0.66 - 0.024 * epoch - (auc - 0.77) * 20,
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
    trials = [("pep 1", plan.stored_bytes(), 0.7691), ("pep 2", 15_900, 0.7655)]
    references = [("uniform 2", 10_328, 0.7588), ("uniform 4", 15_492, 0.7606), ("uniform 8", 25_820, 0.7633)]
    search = {
        "budget_bytes": budget,
        "trials": [
            {"name": n, "bytes": b, "validation_auc": a, "settings": {"granularity": "row", "threshold": -4.5}}
            for n, b, a in trials
        ],
        "references": [{"name": n, "bytes": b, "validation_auc": a, "settings": {}} for n, b, a in references],
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
    checks = [
        {
            "table": table,
            "column": column,
            "expectation": "expect_column_values_to_be_between",
            "passed": column != "age",
            "unexpected": 12 if column == "age" else 0,
            "observed": "131" if column == "age" else None,
        }
        for table, column in (("users", "age"), ("items", "item_id"), ("events", "label"))
    ]
    write_json(folder / "validate_raw" / "validation.json", checks)
    write_json(folder / "validate_frame" / "validation.json", checks[1:])
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
        (
            "parity_packed",
            "packed and retrained probabilities differ by at most 0.00311, within the manifest's bound of 0.00622",
        ),
        ("latency", "ranking 100 candidates over HTTP takes 7.1 ms in the median, within the limit of 200 ms"),
        (
            "parity_served",
            "served and packed probabilities of 2000 test rows differ by at most 5.96e-08, within the bound of 1e-06",
        ),
        (
            "server",
            "the server boots and answers its sample request 0 from what is expected, within the limit of 1e-06",
        ),
    ]
    limits = {"quality_full": 0.005, "bytes": budget, "latency": 200.0}
    curve = [
        (0.12, 0.14),
        (0.26, 0.27),
        (0.35, 0.33),
        (0.44, 0.45),
        (0.52, 0.5),
        (0.59, 0.6),
        (0.66, 0.64),
        (0.73, 0.74),
        (0.8, 0.78),
        (0.9, 0.88),
    ]
    evaluation = {
        "passed": True,
        "gates": [
            {"name": n, "value": 7.1, "limit": limits.get(n), "passed": True, "sentence": sentence}
            for n, sentence in gates
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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> dict[str, str]:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(finished_run, tmp_path) -> dict[str, str]:
    """A copy that a test may change."""
    for step, folder in finished_run.items():
        shutil.copytree(folder, tmp_path / "run" / step)
    return {step: str(tmp_path / "run" / step) for step in finished_run}


def render(artifacts: dict[str, str], folder: Path, schema: Schema | None = None) -> str:
    schema = schema or Schema.load("ml_100k")
    target = folder / "page" / "report.html"
    write_report(artifacts, schema, data_version="latest:shop", git_commit="ba23b87" * 5, target=target)
    return (folder / "page" / "report.html").read_text()


def change(artifacts: dict[str, str], step: str, name: str, **values) -> None:
    path = Path(artifacts[step]) / name
    write_json(path, {**read_json(path), **values})


class Outline(HTMLParser):
    """Checks that tags balance; collects headings, ids, SVG attributes, visible text and the attributes that fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.figures: list[dict] = []
        self.fetched: list[tuple[str, str]] = []
        self.headers_without_scope = 0
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"repeated attribute in {tag}: {attrs}"
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.figures += [attributes] if tag == "svg" else []
        self.headers_without_scope += tag == "th" and "scope" not in attributes
        self.fetched += [(tag, name) for name in attributes if name in {"src", "href", "srcset", "data", "action"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def test_page_stands_alone_and_is_small(finished_run, tmp_path):
    page = render(finished_run, tmp_path)
    outline = Outline(page)
    assert len(page) < 200_000
    assert not outline.fetched
    assert not re.search(r"<script|<link|<iframe|@import|url\(|\son\w+=", page)
    assert set(re.findall(r"https?://[^\s<\"]+", page)) == {"http://127.0.0.1:43117"}


def test_page_has_every_section_and_accessible_figures(finished_run, tmp_path):
    outline = Outline(render(finished_run, tmp_path))
    assert outline.headings == [
        "Gates",
        "The run, step by step",
        "What became of the tables",
        "Quality against size",
        "Learning",
        "Quality on the test rows",
        "Serving",
        "Drift",
        "Data and schema",
        "Parameters and provenance",
    ]
    assert len(outline.ids) == len(set(outline.ids))
    assert len(outline.figures) == 3 + len(ROWS) + 1 + 2 + 1 + 1 + 2
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in outline.figures)
    assert outline.headers_without_scope == 0
    assert "missing" not in outline.text.replace("may be missing", "")


def test_page_tells_the_figures(finished_run, tmp_path):
    text = Outline(render(finished_run, tmp_path)).text
    plan = make_plan()
    ratio = plan.full_bytes() / plan.stored_bytes()
    assert (
        f"The compact model is {ratio:.1f}\u00d7 smaller and loses 0.0007 AUC; it is deployed at http://127.0.0.1:43117"
        in text
    )
    for step in STEPS:
        assert step in text
    assert "100,000 → 99,988" in text
    assert "column 'age' has values over 120: 12" in text
    assert "2\u202fmin 54\u202fs of work" in text
    assert "train79,99050.0\u202f%" in text
    assert "user_events moves most: 0.771 against a limit of 1." in text


def test_equal_inputs_give_equal_bytes(finished_run, tmp_path):
    assert render(finished_run, tmp_path / "one") == render(finished_run, tmp_path / "two")


def test_headline_says_why_a_model_is_not_deployed(run, tmp_path):
    evaluation = read_json(Path(run["evaluate"]) / "evaluation.json")
    evaluation["gates"][0] |= {"passed": False, "sentence": "the loss of 0.0107 is over the limit of 0.005"}
    evaluation["metrics"]["packed"]["auc"] = 0.7477
    change(run, "evaluate", "evaluation.json", **evaluation | {"passed": False})
    change(run, "deploy", "deployment.json", deployed=False, kept_champion=True, reason="gates failed")
    text = Outline(render(run, tmp_path)).text
    assert "smaller but loses 0.0107 AUC; it is not deployed" in text
    assert "1 of 7 gates failed. The loss of 0.0107 is over the limit of 0.005." in text
    assert "keeps the champion at http://127.0.0.1:43117." in text
    assert text.count("✗ failed") == 1


def test_same_model_again_already_serves(run, tmp_path):
    reason = "this model already serves at http://127.0.0.1:43117"
    change(run, "deploy", "deployment.json", deployed=False, kept_champion=True, reason=reason)
    page = render(run, tmp_path)
    assert "; it already serves at http://127.0.0.1:43117" in page
    assert "champion at" not in page
    assert '<body class="good">' in page


def test_a_model_that_cannot_be_measured(run, tmp_path):
    """What evaluation.json holds when the packed model does not even load."""
    evaluation = read_json(Path(run["evaluate"]) / "evaluation.json")
    evaluation["metrics"] |= {"packed": None, "compact": None}
    evaluation["bytes"]["packed"] = None
    for gate in evaluation["gates"]:
        gate |= {"passed": False, "value": None, "limit": None, "sentence": "the file is broken"}
    change(
        run, "evaluate", "evaluation.json", **evaluation | {"passed": False, "latency_ms": {}, "calibration_curve": []}
    )
    change(run, "deploy", "deployment.json", deployed=False, url=None, model_md5=None, reason="gates failed")
    text = Outline(render(run, tmp_path)).text
    assert "The compact model could not be measured; it is not deployed" in text
    assert "nothing serves" in text


def test_the_version_that_was_fetched_is_told(run, tmp_path):
    text = Outline(render(run, tmp_path)).text
    assert MD5 in text
    assert "latest:shop" not in text
    shutil.rmtree(run["checkout"])
    assert "latest:shop" in Outline(render(run, tmp_path)).text


@pytest.mark.parametrize("step", STEPS)
def test_a_missing_artifact_is_named_and_the_rest_still_drawn(run, tmp_path, step):
    shutil.rmtree(run[step])
    text = Outline(render(run, tmp_path)).text
    assert f"{step}: step.json" in text
    assert "left no record" in text


def test_a_run_without_any_artifact_still_gives_a_page(tmp_path):
    text = Outline(render({}, tmp_path)).text
    assert "This run was not judged" in text
    for name in ("plan.json", "search.json", "metrics.json", "drift.json", "manifest.json", "validation.json"):
        assert f"{name} is missing from this run" in text


def test_a_broken_file_is_one_sentence_and_leaves_no_page(run, tmp_path):
    (Path(run["evaluate"]) / "evaluation.json").write_text("{")
    with pytest.raises(NarrowcastError, match=r"evaluation\.json is not valid JSON"):
        render(run, tmp_path)
    assert not (tmp_path / "page").exists()


def test_whatever_came_from_data_is_escaped(run, tmp_path):
    bad = "<img src=x onerror=alert(1)>\"'&"

    def poison(value):
        if isinstance(value, str):
            return bad + value
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        return [poison(item) for item in value] if isinstance(value, list) else value

    for path in Path(run["ingest"]).parent.rglob("*.json"):
        if path.name != "plan.json":
            write_json(path, poison(read_json(path)))
    record = Path(run["validate_raw"]) / "step.json"
    change(run, "validate_raw", "step.json", refused={bad: 12}, metrics={bad: 1.0})
    plan = read_json(Path(run["search"]) / "plan.json")
    plan["tables"] = {f"{bad}{name}": table for name, table in plan["tables"].items()}
    write_json(Path(run["search"]) / "plan.json", plan)
    assert bad in json.loads(record.read_text())["refused"]
    page = render(run, tmp_path)
    outline = Outline(page)
    assert "<img" not in page
    assert not outline.fetched
    assert bad in outline.text


def test_a_schema_without_time_users_or_items(run, tmp_path):
    text = """
name: plain
sources: {events: {path: e.csv, format: csv}}
label: {column: y}
fields: [{name: a, type: categorical}, {name: b, type: numeric, min: -1}]
"""
    assert "from -1" in Outline(render(run, tmp_path, Schema.from_text(text))).text


def test_one_epoch_and_no_trials_still_draw(run, tmp_path):
    metrics = read_json(Path(run["train"]) / "metrics.json")
    metrics["curves"], metrics["best_epoch"] = metrics["curves"][:1], 1
    for step in ("train", "retrain"):
        write_json(Path(run[step]) / "metrics.json", copy.deepcopy(metrics))
    change(run, "search", "search.json", references=[], trials=[])
    page = render(run, tmp_path)
    Outline(page)
    assert not re.search(r"[\" MLQ](nan|-?inf)\b", page)
    assert "0 trials" not in page


def test_summary_names_figures_failures_and_paths(finished_run):
    from rich.console import Console

    from narrowcast.components.report.terminal import run_summary

    evaluation = read_json(Path(finished_run["evaluate"]) / "evaluation.json")
    deployment = read_json(Path(finished_run["deploy"]) / "deployment.json")

    def told_of(evaluation: dict, deployment: dict) -> str:
        console = Console(width=100)
        with console.capture() as captured:
            console.print(run_summary(evaluation, deployment, 100_000, MD5, "/tmp/[run]/report.html"))
        return captured.get()

    told = told_of(evaluation, deployment)
    ratio = evaluation["bytes"]["full"] / evaluation["bytes"]["packed"]
    for words in (
        "0.7584",
        "0.7577",
        "\u22120.0007",
        f"{ratio:.1f}\u00d7 smaller",
        "7.11",
        "12.9",
        "7 of 7 passed",
        "100,000",
        MD5,
    ):
        assert words in told
    assert "http://127.0.0.1:43117 (default)" in told
    assert "/tmp/[run]/report.html" in told
    told = told_of(evaluation, deployment | {"deployed": False, "reason": "the new server does not answer"})
    assert "left as it was" in told
    assert "The new server does not answer." in told
    evaluation["gates"][2] |= {"passed": False, "sentence": "over the budget"}
    evaluation["metrics"]["packed"], evaluation["latency_ms"], evaluation["bytes"]["packed"] = None, {}, None
    deployment |= {"deployed": False, "url": None, "reason": "gates failed: over the budget"}
    told = told_of(evaluation, deployment)
    assert told.lower().count("over the budget") == 1
    for words in ("6 of 7 passed", "bytes: Over the budget.", "nothing serves at default"):
        assert words in told
    assert "nothing serves" not in told_of(evaluation, deployment | {"endpoint": ""})
