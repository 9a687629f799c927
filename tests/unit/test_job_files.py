"""What the machines of a Ray cluster share: an address names one place everywhere, and is fetched once a machine."""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from narrowcast.components.train.job_files import JOB, address_of, job_folder, local_copy, local_path
from narrowcast.objects import put


def test_without_a_job_an_address_is_a_path(tmp_path, monkeypatch):
    monkeypatch.delenv(JOB, raising=False)
    assert address_of(tmp_path / "data") == str(tmp_path / "data")
    assert local_copy(str(tmp_path / "data")) == tmp_path / "data"
    assert job_folder("train") is None


def test_a_jobs_folder_is_on_object_storage(monkeypatch):
    monkeypatch.setenv(JOB, "s3://bucket/home/jobs/run")
    assert job_folder("train") == "s3://bucket/home/jobs/run/train"


def test_a_copy_knows_its_address(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    address = "s3://bucket/home/jobs/run/inputs/encoded"
    assert address_of(local_path(address)) == address
    assert local_path(address).is_relative_to(tmp_path)


def test_processes_of_a_machine_fetch_once(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ids.npy").write_bytes(bytes(1_000_000))
    put(tmp_path / "data", f"{s3}/data")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(local_copy, 2 * [f"{s3}/data"])
    assert first == second == tmp_path / "temporary" / "narrowcast-copies" / "s3" / "narrowcast" / "data"
    assert [file.name for file in first.iterdir()] == ["ids.npy"]
    written = first.stat().st_mtime_ns, (first / "ids.npy").stat().st_ino
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(local_copy, f"{s3}/data").result() == first
    assert (first.stat().st_mtime_ns, (first / "ids.npy").stat().st_ino) == written
