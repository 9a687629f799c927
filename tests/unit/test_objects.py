"""Files and folders on this machine and on a real S3 endpoint, by the same functions."""

import pytest

from narrowcast import objects
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest


@pytest.fixture(params=["folder", "s3"])
def home(request, tmp_path):
    return str(tmp_path / "home") if request.param == "folder" else request.getfixturevalue("s3") + "/home"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    (made / "deep" / "er").mkdir(parents=True)
    (made / "deep" / "er" / "rows.bin").write_bytes(bytes(range(256)) * 1000)
    (made / "name").write_text("text")
    return made


def test_a_folder_comes_back_as_it_was(home, folder, tmp_path):
    objects.put(folder, objects.join(home, "jobs", "one"))
    target = tmp_path / "back"
    objects.fetch(objects.join(home, "jobs", "one"), target)
    assert digest(target) == digest(folder)
    assert objects.names(objects.join(home, "jobs", "one")) == ["deep", "name"]
    assert objects.names(objects.join(home, "jobs", "two")) == []
    (target / "more").write_text("left by something else")
    objects.fetch(objects.join(home, "jobs", "one"), target)
    assert digest(target) == digest(folder)
    assert sorted(path.name for path in tmp_path.glob(".back*")) == []


def test_a_file_and_json_come_back(home, folder, tmp_path):
    objects.put(folder / "name", objects.join(home, "a", "name"))
    objects.fetch(objects.join(home, "a", "name"), tmp_path / "name")
    assert (tmp_path / "name").read_text() == "text"
    objects.write_json(objects.join(home, "state.json"), {"b": [1, None]})
    assert objects.read_json(objects.join(home, "state.json")) == {"b": [1, None]}


def test_what_is_deleted_is_gone_and_nothing_is_no_error(home, folder):
    for source in (folder, folder / "name"):
        address = objects.join(home, "x", source.name)
        objects.put(source, address)
        assert objects.exists(address)
        objects.delete(address)
        objects.delete(address)
        assert not objects.exists(address)


def test_what_is_not_there_is_one_sentence(home, tmp_path):
    with pytest.raises(NarrowcastError, match=r"cannot read .*/none: it does not exist"):
        objects.fetch(objects.join(home, "none"), tmp_path / "none")
    with pytest.raises(NarrowcastError, match=r"cannot read .*/none\.json: it does not exist"):
        objects.read_json(objects.join(home, "none.json"))
    assert not (tmp_path / "none").exists()


def test_a_missing_bucket_and_another_scheme_are_one_sentence(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(NarrowcastError, match=r"cannot read s3://none/x \(.*\): check AWS_ENDPOINT_URL"):
        objects.fetch("s3://none/x", tmp_path / "x")
    with pytest.raises(NarrowcastError, match="'gs://bucket/x' is no address"):
        objects.put(folder, "gs://bucket/x")
