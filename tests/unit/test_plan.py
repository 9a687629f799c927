"""Plans: exact bytes, and contradictions refused."""

import dataclasses

import pytest

from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.errors import NarrowcastError


def table(*blocks: Block, rows: int = 10, **settings) -> TablePlan:
    return TablePlan(rows=rows, blocks=blocks, **settings)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Block(start=0, stop=10, columns=(0, 1, 2)), 10 * 12),
        (Block(start=0, stop=10, columns=(0, 1, 2), bits=8), 10 * (3 + 2)),
        (Block(start=0, stop=10, columns=(0, 1, 2), bits=16), 10 * 6),
        (Block(start=0, stop=10, columns=(0, 1, 2), bits=4), 10 * (2 + 1)),
        (Block(start=0, stop=10, columns=(0, 1, 2, 3, 4), bits=2), 10 * (2 + 1)),
        (Block(start=0, stop=10, columns=(0, 2, 3), bits=8), 10 * (3 + 2) + 3),
        (Block(start=0, stop=10, columns=(), bits=8), 0),
    ],
)
def test_block_bytes_by_hand(block, expected):
    assert block.stored_bytes() == expected


def test_projection_is_counted_and_inner_width_is_not():
    block = Block(start=0, stop=10, columns=(0, 1), bits=32)
    assert Plan(width=8, tables={"a": table(block, projection=2)}).stored_bytes() == 10 * 2 * 4 + 2 * 8 * 4
    assert full_plan({"a": 10}, 4, inner_width=16).stored_bytes() == full_plan({"a": 10}, 4).full_bytes() == 160


def test_save_and_load(tmp_path):
    blocks = Block(start=0, stop=3, columns=(1, 3), bits=4), Block(start=3, stop=7, columns=())
    plan = Plan(width=4, tables={"a": table(*blocks)}, method="m", parameters={"x": 1})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": ()}, "no blocks"),
        ({"blocks": (Block(start=1, stop=3, columns=(0,)),)}, "should start at row 0"),
        ({"blocks": (Block(start=0, stop=3, columns=(0,)), Block(start=4, stop=5, columns=(0,)))}, "start at row 3"),
        ({"blocks": (Block(start=0, stop=11, columns=(0,)),)}, "keeps 11 of 10"),
        ({"blocks": (Block(start=0, stop=3, columns=(0,), bits=6),)}, "6 bits"),
        ({"blocks": (Block(start=0, stop=3, columns=(1, 0)),)}, "ascending"),
        ({"blocks": (Block(start=0, stop=3, columns=(4,)),)}, "below 4"),
        ({"projection": 2, "inner_width": 8}, "exclude each other"),
        ({"projection": 0}, "width 0"),
        ({"inner_width": 0}, "at least 1"),
    ],
)
def test_contradictions_are_refused(change, said):
    good = table(Block(start=0, stop=3, columns=(0,)))
    with pytest.raises(NarrowcastError, match=said):
        Plan(width=4, tables={"a": dataclasses.replace(good, **change)})


@pytest.mark.parametrize(
    "text", ["[]", '{"width": 4}', '{"width": 4, "tables": [1]}', '{"width": 4, "tables": {}, "w": 1}']
)
def test_a_file_that_is_no_plan_says_so(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(NarrowcastError, match="is not a plan"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_table_names_the_nearest():
    with pytest.raises(NarrowcastError, match="did you mean 'item_id'"):
        full_plan({"item_id": 3}, 4).table("itemid")
