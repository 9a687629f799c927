"""The search step: on Ray and in this process alike, within its budget, each method, and its errors."""

from dataclasses import replace

import pytest

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.search.registry import describe_methods, methods
from narrowcast.components.search.run import SearchConfig, search_plan
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.plan import Plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json

TRAINING = TrainConfig(batch_size=128)
SMALL = {"width": 8, "training": TRAINING, "budget": "1/8"}


def test_ray_finds_the_plan_that_one_process_finds(tiny_encoded, tmp_path):
    search_plan(tiny_encoded, SearchConfig(**SMALL, num_workers=0), tmp_path / "alone")
    search_plan(tiny_encoded, SearchConfig(**SMALL, num_workers=2), tmp_path / "ray")
    assert digest(tmp_path / "ray") == digest(tmp_path / "alone")


@pytest.mark.parametrize("method", [method.name for method in methods()])
@pytest.mark.parametrize("bits", [32, 8])
def test_the_best_trial_within_the_budget_wins(tiny_encoded, tmp_path, method, bits):
    config = SearchConfig(**{**SMALL, "budget": "1/3"}, method=method, bits=bits, num_trials=3)
    search_plan(tiny_encoded, config, tmp_path / "plan")
    plan, found = Plan.load(tmp_path / "plan" / "plan.json"), read_json(tmp_path / "plan" / "search.json")
    assert plan.method == found["method"] == method
    assert plan.stored_bytes() <= found["budget_bytes"] == plan.full_bytes() // 3
    assert {block.bits for table in plan.tables.values() for block in table.blocks} == {bits}
    best = max(row["validation_auc"] for row in found["trials"])
    assert (plan.stored_bytes(), best) in [(row["bytes"], row["validation_auc"]) for row in found["trials"]]
    assert len(found["trials"]) == 3
    assert all(row["bytes"] <= found["budget_bytes"] for row in found["trials"])
    assert [row["settings"]["width"] for row in found["references"]] == [2, 4]
    assert sum(table["stored_bytes"] for table in found["per_table"].values()) == plan.stored_bytes()
    record = StepRecord.load(tmp_path / "plan")
    assert record.rows_in == len(EncodedData(tiny_encoded).split("train"))
    assert record.metrics["validation_auc"] == best


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "tiny"}, "neither a size nor a ratio"),
        ({"budget": "2B"}, "budget of 2 bytes is below the"),
        ({"budget": "8B", "method": "pep_row"}, "method 'pep_row' needs at least"),
        ({"method": "pepp"}, "did you mean 'pep'"),
        ({"method": "mde", "inner_width": 16}, "exclude an inner width"),
        ({"bits": 3}, "bits is 3"),
        ({"num_trials": 0}, "num_trials is 0"),
        ({"num_trials": 99}, "settings to try"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(tiny_encoded, tmp_path, change, said):
    with pytest.raises(NarrowcastError, match=said):
        search_plan(tiny_encoded, SearchConfig(**{**SMALL, **change}), tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_trial_that_fails_on_ray_gives_its_own_sentence(tiny_encoded, tmp_path):
    config = SearchConfig(**{**SMALL, "training": replace(TRAINING, learning_rate=1e30)}, num_workers=1, num_trials=1)
    with pytest.raises(NarrowcastError) as error:
        search_plan(tiny_encoded, config, tmp_path / "plan")
    assert "\n" not in str(error.value)


def test_every_method_says_what_it_is_and_where_from():
    assert set(describe_methods()) == {"mde", "pep", "pep_row"}
    assert all("arXiv" in text for text in describe_methods().values())
