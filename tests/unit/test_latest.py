"""`latest:<name>` on a remote that is a folder."""

import pytest

from narrowcast.components.data import latest
from narrowcast.components.data.remotes import Remote
from narrowcast.components.data.versions import resolved
from narrowcast.errors import NarrowcastError

OLD, NEW = "0" * 32 + ".dir", "1" * 32 + ".dir"


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Remote:
    monkeypatch.chdir(tmp_path)
    return Remote(str(tmp_path / "remote"), writing=True)


def test_it_is_the_version_last_written_of_that_name(remote):
    latest.write(remote, "shop", OLD)
    latest.write(remote, "films", OLD)
    latest.write(remote, "shop", NEW)
    assert latest.resolve("latest:shop", remote) == resolved("latest:shop", remote.address) == NEW
    assert latest.resolve("latest:films", remote) == OLD
    assert remote.names(latest.FOLDER) == ["films", "shop"]


def test_a_version_is_itself_and_asks_no_remote(tmp_path, remote):
    assert latest.resolve(OLD, remote) == OLD
    assert resolved(OLD, str(tmp_path / "nowhere")) == OLD


def test_an_unknown_name_lists_what_is_there(remote):
    latest.write(remote, "shop", OLD)
    with pytest.raises(NarrowcastError, match=r"no snapshot of a folder 'shoe' \(it has: shop\)"):
        latest.resolve("latest:shoe", remote)


def test_a_remote_without_any_says_so(remote, tmp_path):
    (tmp_path / "remote").mkdir()
    with pytest.raises(NarrowcastError, match=r"no snapshot of a folder 'shop' \(it has: none yet\)"):
        resolved("latest:shop", remote.address)


@pytest.mark.parametrize("version", ["shop", "latest", "latest:", "latest:..", "latest:../md5", "latest:a/b", OLD[1:]])
def test_what_is_neither_is_told(remote, version):
    with pytest.raises(NarrowcastError, match="is no data version: give the"):
        latest.resolve(version, remote)


@pytest.mark.parametrize("text", ["", "shop\n", OLD[:20], "../../etc/passwd"])
def test_a_pointer_that_holds_no_version_is_told(remote, text):
    remote.write(f"{latest.FOLDER}/shop", text)
    with pytest.raises(NarrowcastError, match="holds no data version: take a snapshot of shop again"):
        latest.resolve("latest:shop", remote)


def test_a_pointer_is_written_whole_or_not_at_all(remote, monkeypatch):
    latest.write(remote, "shop", OLD)

    def full(source, target, *_):
        target.write(source.read(5))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(NarrowcastError, match=r"cannot write to DVC remote .*No space left"):
        latest.write(remote, "shop", NEW)
    assert latest.resolve("latest:shop", remote) == OLD
    assert remote.names(latest.FOLDER) == ["shop"]
