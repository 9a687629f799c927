"""Data versions with real Git and DVC: taken in one place, fetched in another, and what is said when that fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from narrowcast.components.data.versions import checkout, default_remote, recorded_version, snapshot
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest

PROJECT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def dvc(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, check=True)


@pytest.fixture(autouse=True)
def nobody_in_particular(tmp_path, monkeypatch):
    """Neither this machine's Git settings nor its DVC settings count."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "home" / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "home").mkdir()


@pytest.fixture
def project(tmp_path) -> Path:
    """A checkout set up as this one is, with a folder of raw data."""
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "config", "user.name", "A User")
    git(root, "config", "user.email", "user@example.org")
    (root / ".dvc").mkdir()
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(PROJECT / name, root / name)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    write_raw(root)
    return root


def write_raw(root: Path, clicks: str = "user,click\nu1,1\n") -> Path:
    raw = root / "data" / "raw" / "shop"
    (raw / "more").mkdir(parents=True, exist_ok=True)
    (raw / "clicks.csv").write_text(clicks)
    (raw / "more" / "items.csv").write_text("item\ni1\n")
    return raw


def test_snapshot_commits_the_pointer_alone(project):
    raw = project / "data" / "raw" / "shop"
    (project / "unrelated.txt").write_text("work in progress")
    git(project, "add", "unrelated.txt")
    version = snapshot(raw, message="data of March")
    assert version == recorded_version(raw)
    assert version.endswith(".dir")
    assert git(project, "log", "-1", "--format=%s") == "data of March"
    assert git(project, "show", "--name-only", "--format=", "HEAD").splitlines() == ["data/raw/shop.dvc"]
    assert git(project, "status", "--porcelain").splitlines() == ["A  unrelated.txt"]
    assert (raw / "clicks.csv").is_file()


def test_same_data_same_version_no_second_commit(project):
    raw = project / "data" / "raw" / "shop"
    first = snapshot(raw)
    commits = git(project, "rev-list", "--count", "HEAD")
    assert snapshot(raw) == first
    assert git(project, "rev-list", "--count", "HEAD") == commits
    write_raw(project, "user,click\nu2,0\n")
    assert snapshot(raw, commit=False) != first
    assert git(project, "rev-list", "--count", "HEAD") == commits
    assert git(project, "status", "--porcelain").split() == ["M", "data/raw/shop.dvc"]


def test_every_version_can_be_fetched_without_git_or_dvc(project, tmp_path, monkeypatch):
    raw = project / "data" / "raw" / "shop"
    contents = ["user,click\nu1,1\n", "user,click\nu1,0\n"]
    versions = []
    for content in contents:
        write_raw(project, content)
        versions.append(snapshot(raw))
    remote = default_remote(project)
    assert Path(remote) == project / ".narrowcast" / "dvc-remote"
    moved = tmp_path / "elsewhere"
    shutil.move(remote, moved)
    shutil.rmtree(project)
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    for version, content in zip(versions, contents, strict=True):
        checkout(version, str(moved), tmp_path / "plain" / version)
        fetched = tmp_path / "plain" / version
        assert (fetched / "clicks.csv").read_text() == content
        assert sorted(p.name for p in fetched.rglob("*") if p.is_file()) == ["clicks.csv", "items.csv", "step.json"]
        record = StepRecord.load(fetched)
        assert (record.step, record.rows_in, record.rows_out) == ("checkout", 0, 0)
        assert record.metrics == {"files": 2, "bytes": len(content) + len("item\ni1\n")}
    assert digest(tmp_path / "plain" / versions[0]) != digest(tmp_path / "plain" / versions[1])
    checkout(versions[0], str(moved), tmp_path / "plain" / versions[1])  # replaces what was there
    assert digest(tmp_path / "plain" / versions[0]) == digest(tmp_path / "plain" / versions[1])


def test_version_is_what_dvc_itself_says(project):
    raw = project / "data" / "raw" / "shop"
    version = snapshot(raw)
    shutil.rmtree(raw)
    dvc(project, "pull", "data/raw/shop.dvc")
    assert (raw / "more" / "items.csv").read_text() == "item\ni1\n"
    dvc(project, "add", "data/raw/shop")
    assert recorded_version(raw) == version


def test_missing_object_is_named(project, tmp_path):
    version = snapshot(project / "data" / "raw" / "shop")
    remote = Path(default_remote(project))
    objects = [p for p in remote.rglob("*") if p.is_file() and p.suffix != ".dir"]
    objects[0].unlink()
    with pytest.raises(NarrowcastError) as error:
        checkout(version, str(remote), tmp_path / "raw")
    assert version in str(error.value)
    assert str(remote) in str(error.value)
    assert objects[0].parent.name + objects[0].name in str(error.value)
    assert "dvc push" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "project"]
    never_pushed = "0" * 32 + ".dir"
    with pytest.raises(NarrowcastError, match=f"data version {never_pushed} is not whole on DVC remote {remote}"):
        checkout(never_pushed, str(remote), tmp_path / "raw")


def test_damaged_object_is_refused(project, tmp_path):
    version = snapshot(project / "data" / "raw" / "shop")
    remote = Path(default_remote(project))
    damaged = next(p for p in remote.rglob("*") if p.is_file() and p.suffix != ".dir")
    damaged.chmod(0o644)
    damaged.write_text("not what it was")
    with pytest.raises(NarrowcastError, match="is damaged on DVC remote"):
        checkout(version, str(remote), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    "version", ["", "latest", "0" * 32, "0" * 31 + ".dir", "G" * 32 + ".dir", "../" + "0" * 29 + ".dir"]
)
def test_malformed_version(tmp_path, version):
    with pytest.raises(NarrowcastError, match="is no data version: give the"):
        checkout(version, str(tmp_path), tmp_path / "raw")


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        ("nowhere", "DVC remote .*nowhere does not exist"),
        ("gopher://old/data", "cannot use DVC remote gopher://old/data"),
        ("s3://bucket/data", r"dvc-s3|cannot read DVC remote s3://bucket/data|is not whole"),
    ],
)
def test_remote_that_is_none(tmp_path, monkeypatch, remote, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(NarrowcastError, match=sentence):
        checkout("0" * 32 + ".dir", remote, tmp_path / "raw")


def test_git_without_a_user_says_so(project):
    git(project, "config", "--unset", "user.name")
    git(project, "config", "--unset", "user.email")
    git(project, "config", "user.useConfigOnly", "true")
    raw = project / "data" / "raw" / "shop"
    with pytest.raises(NarrowcastError, match=r"set user.name and user.email with `git config` and run this again"):
        snapshot(raw)
    git(project, "config", "user.name", "A User")
    git(project, "config", "user.email", "user@example.org")
    version = snapshot(raw)  # where it was left off
    assert f"md5: {version}" in git(project, "show", "HEAD:data/raw/shop.dvc")


def test_dvc_without_git(tmp_path):
    root = tmp_path / "plain"
    root.mkdir()
    dvc(root, "init", "-q", "--no-scm")
    dvc(root, "remote", "add", "--default", "there", str(tmp_path / "remote"))
    version = snapshot(write_raw(root))
    checkout(version, default_remote(root), tmp_path / "raw")
    assert (tmp_path / "raw" / "clicks.csv").is_file()


def test_folders_that_give_no_snapshot(project, tmp_path):
    raw = project / "data" / "raw"
    (raw / "empty").mkdir()
    for path, sentence in (
        (raw / "none", "does not exist; `narrowcast data get"),
        (raw / "empty", "holds no files"),
        (raw / "shop" / "clicks.csv", "it is a file"),
        (write_raw(tmp_path / "outside"), "does not lie in a DVC checkout"),
    ):
        with pytest.raises(NarrowcastError, match=sentence):
            snapshot(path)
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(NarrowcastError, match="has no default remote"):
        snapshot(raw / "shop")
    assert git(project, "status", "--porcelain").split() == ["M", ".dvc/config"]


def test_no_or_broken_record(project):
    raw = project / "data" / "raw" / "shop"
    with pytest.raises(NarrowcastError, match=r"shop.dvc does not exist: run `narrowcast data snapshot"):
        recorded_version(raw)
    for text in ("outs: []\n", "outs:\n- path: shop\n", ": :\n  -", "outs:\n- md5: short.dir\n"):
        raw.with_name("shop.dvc").write_text(text)
        with pytest.raises(NarrowcastError, match="records no folder's md5"):
            recorded_version(raw)


def test_the_shipped_pointer_is_that_of_the_published_files(tmp_path):
    """A folder's version is the md5 of the sorted list of its files' md5, so it follows from those in the schema."""
    import hashlib
    import json

    from narrowcast.components.data.schema import Schema

    md5 = Schema.load("ml_100k").download.md5
    listing = json.dumps([{"md5": md5[name], "relpath": name} for name in sorted(md5)], sort_keys=True)
    version = hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"
    assert recorded_version(PROJECT / "data" / "raw" / "ml_100k") == version
