import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrowcast.components.data.schema import Schema
from narrowcast.components.serve.request_log import RequestLog, logged_schema, logged_values, read_log
from narrowcast.errors import NarrowcastError


def request(candidates: int = 3, user: str = "u1", **others):
    """Columns as the server scored them, and what it answered."""
    columns = {
        "user_id": [user],
        "age": [30.0],
        "city": [None],
        "item_id": [str(i) for i in range(candidates)],
        "kind": ["film"] * candidates,
        "tags": [["a", "b"], []] + [["c"]] * (candidates - 2),
        "device": ["tv"],
        "price": [1.5] * candidates,
        "user_events": [3.0],
        "user_click_rate": [0.5],
        "item_events": [0.0] * candidates,
        "item_click_rate": [0.5] * candidates,
        "history": [["7", "8"]],
    } | others
    return columns, np.linspace(0.1, 0.9, candidates, dtype=np.float32)


def wait_until(happened):
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_was_written_is_read_back(tiny_schema, tmp_path):
    log = RequestLog(tmp_path / "log", tiny_schema)
    before = datetime.now(UTC)
    sent = [(*request(n, f"u{n}"), f"version {n % 2}") for n in range(2, 40)]
    for columns, probability_M, version in sent:
        log.write(columns, probability_M, version)
    log.close()
    assert (log.written, log.dropped) == (len(sent), 0)
    table = read_log(tmp_path / "log")
    assert len(table) == len(sent)
    for row, (columns, probability_M, version) in zip(table.to_pylist(), sent, strict=True):
        assert row.pop("_version") == version
        assert before <= row.pop("_time") <= datetime.now(UTC)
        assert row.pop("_probability") == probability_M.tolist()
        assert row == columns
    assert [path.suffix for path in (tmp_path / "log").iterdir()] == [".parquet"]


def test_an_id_has_one_spelling_and_values_may_be_arrays(tiny_schema, tmp_path):
    log = RequestLog(tmp_path, tiny_schema)
    log.write(*request(user_id=[7.0], city=[""], price=np.array([1.0, np.nan, 2.0])), "v")
    log.write(*request(user_id=["7.0"], item_id=[1, 2, 3]), "v")
    log.close()
    table = read_log(tmp_path)
    assert table["user_id"].to_pylist() == [["7"], ["7"]]
    assert table["city"].to_pylist() == [[None], [None]]
    assert table["item_id"].to_pylist() == [["0", "1", "2"], ["1", "2", "3"]]
    assert table["price"].to_pylist() == [[1.0, None, 2.0], [1.5] * 3]


def test_only_the_asked_columns_requests_and_values_are_read(tiny_schema, tmp_path):
    log = RequestLog(tmp_path, tiny_schema)
    for n in range(2, 6):
        log.write(*request(n), "v")
    log.close()
    assert read_log(tmp_path, columns=["device"]).column_names == ["device"]
    assert logged_values(tmp_path, tiny_schema.field("device"), schema=tiny_schema).to_pylist() == ["tv"] * 4
    assert len(logged_values(tmp_path, tiny_schema.field("item_id"), schema=tiny_schema)) == 2 + 3 + 4 + 5
    assert logged_values(tmp_path, tiny_schema.field("history"), schema=tiny_schema).to_pylist() == [["7", "8"]] * 4
    now = datetime.now(UTC)
    assert len(read_log(tmp_path, since=now - timedelta(minutes=5))) == 4
    with pytest.raises(NarrowcastError, match="holds no request since"):
        read_log(tmp_path, since=now + timedelta(minutes=5))


def test_more_than_may_wait_is_dropped_and_counted_without_waiting(tiny_schema, tmp_path):
    log = RequestLog(tmp_path, tiny_schema, roll_rows=10**6, max_pending_rows=1000)
    started = time.monotonic()
    for _ in range(5000):
        log.write(*request(100), "v")
    assert time.monotonic() - started < 5
    assert log.dropped == 5000 - 10
    log.close()
    assert log.written == 10
    log.write(*request(), "v")
    assert log.dropped == 5000 - 10 + 1


def test_parts_roll_by_rows_and_by_time(tiny_schema, tmp_path):
    by_rows = RequestLog(tmp_path / "rows", tiny_schema, roll_rows=300)
    for written in (3, 6, 9):
        for _ in range(3):
            by_rows.write(*request(100), "v")
        wait_until(lambda written=written: by_rows.written == written)
    by_rows.close()
    assert len(list((tmp_path / "rows").iterdir())) == 3
    by_time = RequestLog(tmp_path / "time", tiny_schema, roll_s=0.05)
    by_time.write(*request(), "v")
    wait_until(lambda: by_time.written)
    assert len(read_log(tmp_path / "time")) == 1
    by_time.close()


def test_the_oldest_parts_leave_when_the_bound_is_reached(tiny_schema, tmp_path):
    log = RequestLog(tmp_path, tiny_schema, roll_rows=2, max_bytes=40_000)
    for number in range(40):
        log.write(*request(2, f"u{number}"), "v")
        wait_until(lambda number=number: log.written == number + 1)
    log.close()
    assert log.written == 40
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40_000
    kept = [users[0] for users in read_log(tmp_path)["user_id"].to_pylist()]
    assert 0 < len(kept) < 40
    assert kept == [f"u{number}" for number in range(40 - len(kept), 40)]


@pytest.mark.parametrize("share", [0.25, 0.1, 1.0])
def test_a_share_is_logged_evenly(tiny_schema, tmp_path, share):
    log = RequestLog(tmp_path, tiny_schema, share=share)
    for number in range(200):
        log.write(*request(2, f"u{number}"), "v")
    log.close()
    assert (log.written, log.dropped) == (200 * share, 0)
    numbers = [int(users[0][1:]) for users in read_log(tmp_path)["user_id"].to_pylist()]
    assert set(np.diff(numbers)) == {round(1 / share)}


def test_a_disk_that_refuses_costs_the_requests_not_the_server(tiny_schema, tmp_path):
    folder = tmp_path / "log"
    log = RequestLog(folder, tiny_schema, roll_s=0.02)
    folder.rmdir()
    folder.write_text("in the way")
    log.write(*request(), "v")
    wait_until(lambda: log.dropped)
    folder.unlink()
    folder.mkdir()
    log.write(*request(), "v")
    log.close()
    assert (log.written, log.dropped) == (1, 1)


def test_requests_for_a_model_of_another_schema_are_left_out(tiny_schema, tmp_path):
    for text, version in (
        (tiny_schema.to_text(), "old"),
        (tiny_schema.to_text().replace("max_drift: 5.0", "max_drift: 2.0"), "new"),
    ):
        log = RequestLog(tmp_path, Schema.from_text(text))
        log.write(*request(), version)
        log.close()
    assert read_log(tmp_path)["_version"].to_pylist() == ["new"]
    assert read_log(tmp_path, schema=tiny_schema)["_version"].to_pylist() == ["old"]
    assert logged_schema(tmp_path).checks.max_drift == 2.0


def test_folders_that_will_not_do_are_sentences(tiny_schema, tmp_path):
    with pytest.raises(NarrowcastError, match="no logged requests"):
        read_log(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NarrowcastError, match="cannot be logged to"):
        RequestLog(tmp_path / "file", tiny_schema)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-1.parquet")
    with pytest.raises(NarrowcastError, match="no part of a request log"):
        read_log(tmp_path)
