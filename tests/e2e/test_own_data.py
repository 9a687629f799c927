"""A CSV that no schema existed for, from file to endpoint, and the same run again in every way there is."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from narrowcast.components.data.schema import Schema
from narrowcast.records import digest

pytestmark = pytest.mark.slow
QUICK = {
    "num_workers": "0",
    "epochs": "4",
    "learning_rate": "0.01",
    "num_trials": "1",
    "batch_size": "128",
    "width": "8",
    "budget": "1/4",
    "max_auc_loss": "0.1",  # a few hundred test rows
}
DERIVED = ("encoded", "full_model", "plan", "compact_model", "packed_model")


def write_shop(path: Path, rows: int = 3000, seed: int = 3) -> None:
    """A shop's click log as its owner would export it: one CSV, names of their own."""
    rng = np.random.default_rng(seed)
    shoppers, products = 80, 50
    shopper, product = rng.integers(0, shoppers, rows), np.minimum(rng.zipf(1.2, rows) - 1, products - 1)
    taste, shelf = rng.normal(0, 1.5, (shoppers, 4)), rng.integers(0, 4, products)
    bought = rng.random(rows) < 1 / (1 + np.exp(-(taste[shopper, shelf[product]] - 0.3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "shopper": [f"s{u}" for u in shopper],
            "sku": [f"p{i}" for i in product],
            "shelf": [f"shelf {shelf[i]}" for i in product],
            "at": pd.Timestamp("2024-03-01") + pd.to_timedelta(np.sort(rng.integers(0, 30 * 86400, rows)), unit="s"),
            "channel": rng.choice(["web", "app"], rows),
            "basket": rng.lognormal(2, 1, rows).round(2),
            "bought": bought.astype(int),
            "refunded": (bought & (rng.random(rows) < 0.05)).astype(int),
        }
    ).to_csv(path, index=False)


@pytest.fixture(scope="module")
def shop(checkout):
    """The checkout with the shop's clicks, their drafted and edited schema, and the first run's manifest."""
    write_shop(checkout.folder / "data/raw/shop/clicks.csv")
    checkout.narrowcast("data", "describe", "data/raw/shop/clicks.csv", "--name", "shop", "-o", "shop.yaml")
    path = checkout.folder / "shop.yaml"
    draft = path.read_text()
    refunded = next(line for line in draft.splitlines() if "name: refunded" in line)
    path.write_text(draft.replace(refunded + "\n", "") + "leakage: [refunded]\n")
    version = checkout.narrowcast("data", "snapshot", "data/raw/shop").stdout.strip()
    checkout.set_parameters(schema="shop.yaml", data_version=version, **QUICK)
    checkout.commit("our shop")
    return checkout, json.loads(checkout.narrowcast("run", "--json").stdout)


def steps_with(run: dict, status: str) -> set[str]:
    return {name for name, step in run["steps"].items() if step["status"] == status}


def test_the_draft_found_keys_label_and_time(shop):
    checkout, _ = shop
    schema = Schema.load(checkout.folder / "shop.yaml")
    assert (schema.user, schema.item, schema.label.column) == ("shopper", "sku", "bought")
    assert schema.timestamp.column == "at"


def test_every_step_accounts_for_its_rows(shop):
    _, run = shop
    assert run["status"] == "succeeded"
    assert len(run["steps"]) == 13
    for name in ("ingest", "validate_raw", "features", "validate_frame", "encode"):
        step = run["steps"][name]
        assert step["rows_in"] == 3000 == step["rows_out"] + sum(step["refused"].values()), name


def test_the_model_learnt_and_keeps_its_budget(shop):
    _, run = shop
    assert run["metrics"]["auc_packed"] > 0.6
    assert run["metrics"]["bytes_packed"] <= run["metrics"]["bytes_full"] / 4


def test_the_endpoint_ranks_known_and_unknown(shop):
    checkout, _ = shop
    done = checkout.narrowcast(
        "rank",
        "--user",
        "s3",
        "--candidates",
        "p1,p2,unheard-of",
        "--context",
        "channel=web",
        "--context",
        "basket=20",
        "--json",
    )
    ranked = json.loads(done.stdout)
    assert {row["item"] for row in ranked} == {"p1", "p2", "unheard-of"}
    assert all(0 < row["probability"] < 1 for row in ranked)
    assert [row["probability"] for row in ranked] == sorted((row["probability"] for row in ranked), reverse=True)
    checkout.narrowcast(
        "rank", "--user", "nobody", "--candidates", "p1", "--context", "channel=web", "--context", "basket=1"
    )


@pytest.mark.parametrize("context", [["channel=web"], ["channel=web", "basket=nan"], ["channel=web", "basket=cheap"]])
def test_a_bad_request_names_the_field(shop, context):
    checkout, _ = shop
    arguments = [argument for item in context for argument in ("--context", item)]
    done = checkout.narrowcast("rank", "--user", "s3", "--candidates", "p1", *arguments, check=False)
    assert done.returncode == 1
    assert "basket" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_second_run_is_cached_and_quick(shop):
    checkout, first = shop
    started = time.monotonic()
    again = json.loads(checkout.narrowcast("run", "--set", "data_version=latest:shop", "--json").stdout)
    assert time.monotonic() - started < 60
    assert steps_with(again, "done") == {"deploy", "report"}
    assert again["data_version"] == again["parameters"]["data_version"] == first["data_version"]
    assert again["artifacts"]["packed_model"]["md5"] == first["artifacts"]["packed_model"]["md5"]


def test_a_changed_parameter_reruns_only_what_depends_on_it(shop):
    checkout, _ = shop
    run = json.loads(checkout.narrowcast("run", "--set", "bits=4", "--no-deploy", "--json").stdout)
    assert steps_with(run, "cached") == {
        "checkout", "ingest", "validate_raw", "features", "validate_frame", "encode", "train",
    }  # fmt: skip


def test_a_crash_between_steps_costs_only_what_was_not_done(shop):
    checkout, first = shop
    for folder in (checkout.folder / ".narrowcast/kfp").glob("*/retrain"):
        shutil.rmtree(folder)
    run = json.loads(checkout.narrowcast("run", "--json").stdout)
    assert steps_with(run, "cached") == {
        "checkout", "ingest", "validate_raw", "features", "validate_frame", "encode", "train", "search",
    }  # fmt: skip
    assert run["artifacts"]["packed_model"]["md5"] == first["artifacts"]["packed_model"]["md5"]


def test_a_fresh_clone_and_the_remote_reproduce_the_run(shop, tmp_path):
    checkout, first = shop
    checkout.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = type(checkout)(tmp_path / "clone")
    manifest = checkout.folder / ".narrowcast/runs" / first["run_id"] / "run.json"
    remote = checkout.folder / ".narrowcast/dvc-remote"
    compared = json.loads(clone.narrowcast("reproduce", str(manifest), "--remote", str(remote), "--json").stdout)
    assert compared["packed_model"]["same"]
    assert all(entry["same"] for entry in compared.values())
    assert compared["packed_model"]["now"] == first["artifacts"]["packed_model"]["md5"]


def test_dvc_repro_makes_the_same_model(shop):
    checkout, first = shop
    checkout.run("dvc", "repro", "-q")
    for name in DERIVED:
        assert digest(checkout.folder / "artifacts" / name) == first["artifacts"][name]["md5"], name
    checkout.commit("reproduced by DVC")
    checkout.run("dvc", "exp", "run", "-q", "-S", "epochs=1", "-S", "endpoint=''")
    changed = json.loads(checkout.run("dvc", "metrics", "diff", "--json").stdout)
    assert "auc_full" in next(iter(changed.values()))
    assert "learning curves" in checkout.run("dvc", "plots", "show", "--json").stdout


def test_a_missing_data_version_is_one_sentence_and_leaves_the_model(shop):
    checkout, _ = shop
    missing = hashlib.md5(b"never", usedforsecurity=False).hexdigest() + ".dir"
    done = checkout.narrowcast("run", "--set", f"data_version={missing}", check=False)
    assert done.returncode == 1
    assert missing[:32] in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(checkout.narrowcast("serve", "--status", "--json").stdout)[0]["alive"]


def test_a_leaking_label_or_a_bad_file_stops_the_run_with_a_sentence(shop):
    checkout, _ = shop
    clicks = checkout.folder / "data/raw/shop/clicks.csv"
    lines = clicks.read_text().splitlines()
    broken = checkout.folder / "data/raw/broken"
    broken.mkdir()
    (broken / "clicks.csv").write_text("\n".join([lines[0], *(line[:-3] + "7,0" for line in lines[1:40])]) + "\n")
    done = checkout.narrowcast("run", "--data", "data/raw/broken", check=False)
    assert done.returncode == 1
    assert "label" in done.stderr
    assert "Traceback" not in done.stderr
    newest = max((checkout.folder / ".narrowcast/runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text())["status"] == "failed"
