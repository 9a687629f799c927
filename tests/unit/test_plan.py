"""Plans: exact bytes, and contradictions refused."""

import dataclasses
import json

import pytest

from narrowcast.components.train.forms import QR, Codebook, Hash
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


@pytest.mark.parametrize(
    ("form", "bits", "expected"),
    [
        (Hash(buckets=3), 32, 3 * 16),
        (Hash(buckets=3), 4, 3 * (2 + 1)),
        (QR(remainders=4), 32, (4 + 3) * 16),
        (QR(remainders=4, combine="add"), 8, (4 + 3) * (4 + 2)),
        (QR(remainders=3, combine="concatenate"), 16, (3 + 4) * 4),
        (Codebook(groups=2, centroids=9), 32, 10 * 1 + 9 * 16),
        (Codebook(groups=4, centroids=9), 16, 10 * 2 + 9 * 8),
    ],
)
def test_bytes_of_forms_by_hand(form, bits, expected):
    columns = (0, 1, 2, 3)
    assert Block(start=2, stop=12, columns=columns, bits=bits, form=form).stored_bytes() == expected
    gaps = Block(start=2, stop=12, columns=(0, 2, 3, 5), bits=bits, form=form)
    assert gaps.stored_bytes() == expected + 4


@pytest.mark.parametrize(("bits", "row_bytes"), [(32, 64), (16, 32), (8, 18), (4, 9), (2, 5)])
def test_rows_of_sixteen_values(bits, row_bytes):
    assert Block(start=0, stop=1, columns=tuple(range(16)), bits=bits).row_bytes() == row_bytes


@pytest.mark.parametrize("combine", ["multiply", "add", "concatenate"])
@pytest.mark.parametrize(("num_ids", "remainders"), [(10, 3), (12, 4), (7, 2), (101, 10)])
def test_quotients_and_remainders_are_as_many_as_the_paper_says(num_ids, remainders, combine):
    remainder, quotient = QR(remainders=remainders, combine=combine).parts(num_ids, tuple(range(5)))
    assert (remainder.rows, quotient.rows) == (remainders, -(-num_ids // remainders))
    whole = combine == "concatenate"
    assert (remainder.columns + quotient.columns if whole else remainder.columns) == tuple(range(5))
    assert max(num_ids - 1, 0) // remainders == quotient.rows - 1  # the last id reads the last quotient


@pytest.mark.parametrize(
    ("block", "lossy"),
    [
        (Block(start=0, stop=9, columns=(0,)), False),
        (Block(start=0, stop=9, columns=(0,), bits=16), True),
        (Block(start=0, stop=9, columns=(), bits=4), False),
        (Block(start=0, stop=9, columns=(0,), form=Hash(buckets=2)), False),
        (Block(start=0, stop=9, columns=(0,), form=Codebook(groups=1, centroids=4)), True),
    ],
)
def test_lossy_is_what_stores_less_than_was_trained(block, lossy):
    assert table(block).is_lossy == lossy
    assert table(Block(start=0, stop=9, columns=(0,)), dataclasses.replace(block, start=9, stop=18)).is_lossy == lossy


def test_plain_tables_have_own_whole_rows():
    whole = (0, 1)
    assert table(Block(start=0, stop=9, columns=whole, bits=4)).is_plain(2)
    assert table(Block(start=0, stop=9, columns=whole, form=Codebook(groups=1, centroids=4))).is_plain(2)
    assert not table(Block(start=0, stop=9, columns=whole, form=Hash(buckets=3))).is_plain(2)
    assert not table(Block(start=0, stop=9, columns=whole, form=QR(remainders=3))).is_plain(2)
    assert not table(Block(start=0, stop=9, columns=(0,))).is_plain(2)


def test_projection_is_counted_and_inner_width_is_not():
    block = Block(start=0, stop=10, columns=(0, 1), bits=32)
    assert Plan(width=8, tables={"a": table(block, projection=2)}).stored_bytes() == 10 * 2 * 4 + 2 * 8 * 4
    assert full_plan({"a": 10}, 4, inner_width=16).stored_bytes() == full_plan({"a": 10}, 4).full_bytes() == 160


def test_save_and_load(tmp_path):
    blocks = Block(start=0, stop=3, columns=(1, 3), bits=4), Block(start=3, stop=7, columns=())
    plan = Plan(width=4, tables={"a": table(*blocks)}, method="m", parameters={"x": 1})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


FORMS = [Hash(buckets=2), QR(remainders=2, combine="add"), Codebook(groups=2, centroids=3)]


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_saved_with_their_kind(tmp_path, form):
    blocks = Block(start=0, stop=3, columns=(1, 3)), Block(start=3, stop=9, columns=(0, 1), bits=16, form=form)
    plan = Plan(width=4, tables={"a": table(*blocks)})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    private, shared = json.loads((tmp_path / "plan.json").read_text())["tables"]["a"]["blocks"]
    assert private == {"start": 0, "stop": 3, "columns": [1, 3], "bits": 32}  # what plans before forms were written as
    kind = shared["form"].pop("kind")
    assert kind == {Hash: "hash", QR: "qr", Codebook: "codebook"}[type(form)]
    assert shared["form"] == dataclasses.asdict(form)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"kind": "hsh", "buckets": 2}, "no form of rows named 'hsh'; did you mean 'hash'"),
        ({"kind": "hash", "bucket": 2}, "form 'hash': unknown key 'bucket'"),
        ({"kind": "qr"}, "form 'qr': missing key 'remainders'"),
        ({"kind": "hash", "buckets": "two"}, "buckets must be int"),
        ({"buckets": 2}, "is not a plan"),
        ("hash", "is not a plan"),
    ],
)
def test_a_form_that_is_none_says_so(tmp_path, form, said):
    block = {"start": 0, "stop": 9, "columns": [0], "bits": 32, "form": form}
    written = {"width": 4, "tables": {"a": {"rows": 9, "blocks": [block]}}}
    (tmp_path / "plan.json").write_text(json.dumps(written))
    with pytest.raises(NarrowcastError, match=said):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"form": Hash(buckets=0)}, "0 buckets for 9 rows"),
        ({"form": Hash(buckets=9)}, "9 buckets for 9 rows"),
        ({"form": QR(remainders=0)}, "0 remainders"),
        ({"form": QR(remainders=1)}, "1 remainders need no fewer rows"),
        ({"form": QR(remainders=8)}, "8 remainders need no fewer rows"),
        ({"form": QR(remainders=3, combine="sum")}, "combine 'sum'; possible are multiply"),
        ({"form": QR(remainders=3, combine="concatenate"), "columns": (1,)}, "one column"),
        ({"form": Codebook(groups=2, centroids=4)}, "2 groups of 3 columns"),
        ({"form": Codebook(groups=0, centroids=4)}, "0 groups"),
        ({"form": Codebook(groups=3, centroids=1)}, "1 centroids"),
        ({"form": Codebook(groups=3, centroids=9)}, "9 centroids for 9 rows"),
        ({"form": Codebook(groups=3, centroids=257), "stop": 1000}, "257 centroids"),
        ({"form": Codebook(groups=3, centroids=4), "bits": 8}, "a codebook of 8 bits"),
        ({"form": Hash(buckets=3), "columns": ()}, "a form but no columns"),
    ],
)
def test_forms_that_make_no_sense_are_refused(block, said):
    good = Block(start=0, stop=9, columns=(0, 1, 2))
    with pytest.raises(NarrowcastError, match=f"table 'a': block 0-[0-9]+ has {said}"):
        Plan(width=4, tables={"a": table(dataclasses.replace(good, **block), rows=1000)})


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
