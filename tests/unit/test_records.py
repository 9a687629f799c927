import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest, read_json, write_json, writing_directory


@given(rows_out=st.integers(0, 1000), refused=st.dictionaries(st.text(max_size=5), st.integers(1, 50), max_size=3))
def test_an_account_that_adds_up_survives_the_round_trip(tmp_path_factory, rows_out, refused):
    folder = tmp_path_factory.mktemp("record")
    record = StepRecord(step="x", rows_in=rows_out + sum(refused.values()), rows_out=rows_out, refused=refused)
    record.save(folder)
    assert StepRecord.load(folder) == record


def test_a_lost_row_is_refused(tmp_path):
    with pytest.raises(NarrowcastError, match="accounts for 9"):
        StepRecord(step="x", rows_in=10, rows_out=8, refused={"duplicate": 1}).save(tmp_path)
    assert not (tmp_path / "step.json").exists()


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with writing_directory(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(FileNotFoundError), writing_directory(target) as folder:  # noqa: PT012
        (folder / "a").write_text("second")
        (folder / "missing").read_text()
    assert (target / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_digest_is_of_names_and_content_but_not_of_the_record(tmp_path):
    (tmp_path / "a").write_text("1")
    before = digest(tmp_path)
    write_json(tmp_path / "step.json", {"seconds": 1})
    assert digest(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path) != before


def test_json_that_is_missing_or_broken_is_one_sentence(tmp_path):
    with pytest.raises(NarrowcastError, match="does not exist"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(NarrowcastError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
