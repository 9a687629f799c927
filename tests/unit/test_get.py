"""Raw data from a folder or a wheel, and what is said when it is not to be had."""

import gzip
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from narrowcast.components.data.get import available, get
from narrowcast.components.data.schema import Schema, shipped_names
from narrowcast.errors import NarrowcastError

EVENTS = b"user,click\nu1,1\nu2,0\n"


def write_schema(folder: Path, download: str) -> Path:
    path = folder / "shop.yaml"
    path.write_text(
        "name: shop\n"
        "sources: {events: {path: clicks.csv, format: csv}}\n"
        "label: {column: click}\n"
        "fields: [{name: user, type: categorical}]\n" + download
    )
    return path


def md5(content: bytes = EVENTS) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_wheel(folder: Path, member: str) -> None:
    """A wheel as small as pip takes it."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "shopdata-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, EVENTS)
        archive.writestr("shopdata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shopdata\nVersion: 1.0\n")
        archive.writestr(
            "shopdata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("shopdata-1.0.dist-info/RECORD", "")


@pytest.fixture
def wheels_only_here(tmp_path, monkeypatch) -> Path:
    """pip finds wheels in this folder and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def wheel_schema(folder: Path, checksum: str) -> str:
    return str(
        write_schema(
            folder, f"download: {{wheel: shopdata==1.0, inside: shopdata/raw, md5: {{clicks.csv: {checksum}}}}}\n"
        )
    )


def test_named_files_come_out_of_the_wheel(tmp_path, wheels_only_here):
    write_wheel(wheels_only_here, "shopdata/raw/clicks.csv")
    target = tmp_path / "raw" / "shop"
    assert get(wheel_schema(tmp_path, md5()), target) == target
    assert [p.name for p in target.iterdir()] == ["clicks.csv"]
    assert (target / "clicks.csv").read_bytes() == EVENTS


def test_what_lies_there_already_is_not_fetched_again(tmp_path, wheels_only_here):
    target = tmp_path / "raw"
    target.mkdir()
    (target / "clicks.csv").write_bytes(EVENTS)
    get(wheel_schema(tmp_path, md5()), target)  # there is no wheel to be had
    (target / "clicks.csv").write_bytes(b"something else")
    with pytest.raises(NarrowcastError, match=r"pip could not download shopdata==1.0"):
        get(wheel_schema(tmp_path, md5()), target)
    assert (target / "clicks.csv").read_bytes() == b"something else"


def test_wheel_without_the_file(tmp_path, wheels_only_here):
    write_wheel(wheels_only_here, "shopdata/other.csv")
    with pytest.raises(NarrowcastError, match=r"holds no file 'shopdata/raw/clicks.csv'"):
        get(wheel_schema(tmp_path, md5()), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_wheel_with_another_file(tmp_path, wheels_only_here):
    write_wheel(wheels_only_here, "shopdata/raw/clicks.csv")
    with pytest.raises(NarrowcastError, match=f"has md5 {md5()}, but the schema knows 'clicks.csv' by {md5(b'x')}"):
        get(wheel_schema(tmp_path, md5(b"x")), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("packed", [None, "clicks.csv.gz", "clicks.gz"])
def test_files_come_from_a_folder(tmp_path, packed):
    source = tmp_path / "mine"
    source.mkdir()
    (source / (packed or "clicks.csv")).write_bytes(gzip.compress(EVENTS) if packed else EVENTS)
    (source / "unrelated.txt").write_text("stays where it is")
    schema = write_schema(tmp_path, f"download: {{md5: {{clicks.csv: {md5()}}}}}\n")
    get(str(schema), tmp_path / "raw", from_dir=source)
    assert {p.name: p.read_bytes() for p in (tmp_path / "raw").iterdir()} == {"clicks.csv": EVENTS}


def test_folder_may_be_the_target_itself(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "clicks.csv").write_bytes(EVENTS)
    get(str(write_schema(tmp_path, "")), tmp_path / "raw", from_dir=tmp_path / "raw")
    assert (tmp_path / "raw" / "clicks.csv").read_bytes() == EVENTS


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "has no file 'clicks.csv'"),
        ({"clicks.csv": b"other"}, "it is another file or was damaged"),
        ({"clicks.csv.gz": gzip.compress(EVENTS)[:-9]}, "cannot be unpacked"),
        ({"clicks.csv.gz": b"no gzip"}, "cannot be unpacked"),
        (None, "is no folder"),
    ],
)
def test_folder_that_will_not_do(tmp_path, content, sentence):
    source, target = tmp_path / "mine", tmp_path / "raw"
    target.mkdir()
    (target / "before").write_text("still here")
    if content is not None:
        source.mkdir()
        for name, value in content.items():
            (source / name).write_bytes(value)
    schema = write_schema(tmp_path, f"download: {{md5: {{clicks.csv: {md5()}}}}}\n")
    with pytest.raises(NarrowcastError, match=sentence):
        get(str(schema), target, from_dir=source)
    assert [p.name for p in target.iterdir()] == ["before"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_data_behind_terms_is_not_downloaded(tmp_path):
    with pytest.raises(NarrowcastError, match=r"take it from https://www.kaggle.com.*rules.*--from DIR.*train.csv"):
        get("avazu", tmp_path / "raw")
    with pytest.raises(NarrowcastError, match="its schema names no address"):
        get(str(write_schema(tmp_path, "")), tmp_path / "raw")
    with pytest.raises(NarrowcastError, match="did you mean 'ml_100k'"):
        get("ml_100", tmp_path / "raw")


def test_list_has_every_shipped_schema():
    rows = {row["name"]: row for row in available()}
    assert set(rows) == set(shipped_names()) >= {"ml_100k", "kuairand_pure", "criteo", "avazu"}
    assert rows["ml_100k"]["source"] == "recbole==1.2.1"
    assert all(rows[name]["source"].startswith("https://") and rows[name]["terms"] for name in ("criteo", "avazu"))


def test_shipped_advertising_schemas_cover_the_official_columns():
    criteo, avazu = Schema.load("criteo"), Schema.load("avazu")
    assert len(criteo.sources["events"].columns) == 40 == len(criteo.fields) + 1
    assert {f.type for f in criteo.fields[:13]} == {"numeric"}
    assert criteo.timestamp is None
    assert avazu.timestamp.unit == "YYMMDDHH"
    assert len(avazu.fields) == 21  # 24 columns less id, click and hour
