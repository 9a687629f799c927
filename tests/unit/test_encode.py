"""The split, and the encoded arrays against the frame they were made from."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from narrowcast.components.data import encode as encode_module
from narrowcast.components.data.encode import encode
from narrowcast.components.data.encoded import SPLITS, EncodedData, Layout
from narrowcast.components.data.encoder import Encoder
from narrowcast.components.data.schema import Schema
from narrowcast.components.data.split import assign_split
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest


def schema_with(validation: float, test: float) -> Schema:
    return Schema.from_text(f"""
name: ads
sources: {{events: {{path: day.csv, format: csv}}}}
label: {{column: click}}
fields: [{{name: site, type: categorical}}]
split: {{validation: {validation}, test: {test}}}
""")


@given(npst.arrays(np.int64, st.integers(3, 200), elements=st.integers(0, 40)), st.sampled_from([0.1, 0.2, 0.3]))
def test_split_by_time(time, share):
    schema, row_id = schema_with(share, share), np.arange(len(time))
    cuts = pd.Series(time).quantile([1 - 2 * share, 1 - share], interpolation="lower").to_list()
    expected = np.select([time <= cuts[0], time <= cuts[1]], ["train", "validation"], "test")
    if len(set(expected)) < 3:
        with pytest.raises(NarrowcastError, match="split of schema 'ads' would be empty"):
            assign_split(row_id, time, schema, 0)
        return
    for form in (time, time.astype("datetime64[us]")):
        assert (assign_split(row_id, form, schema, 0) == expected).all()


def test_split_at_random():
    schema = schema_with(0.1, 0.2)
    row_id = np.arange(10_000)
    split = assign_split(row_id, None, schema, 7)
    assert [(split == name).sum() for name in SPLITS] == pytest.approx([7000, 1000, 2000], abs=1)
    assert (assign_split(row_id, None, schema, 7) == split).all()
    assert (assign_split(row_id[::-1], None, schema, 7)[::-1] == split).all()
    assert 0.5 < (assign_split(row_id, None, schema, 8) == split).mean() < 0.6  # chance agreement is 0.54
    blocks = (split == "test").reshape(100, 100).sum(1)
    assert blocks.std() == pytest.approx(4, abs=1.5)  # as a binomial draw of 0.2 in 100
    fewer = assign_split(row_id[5:], None, schema, 7)
    assert (fewer != split[5:]).sum() <= 5


def test_split_that_would_be_empty():
    for rows in (0, 1, 2):
        with pytest.raises(NarrowcastError, match="would be empty"):
            assign_split(np.arange(rows), None, schema_with(0.1, 0.1), 0)
    with pytest.raises(NarrowcastError, match="the validation split"):
        assign_split(np.arange(9), np.zeros(9, np.int64), schema_with(0.1, 0.1), 0)
    with pytest.raises(NarrowcastError, match="1 rows have no time"):
        assign_split(np.arange(2), np.array(["2020-01-01", "NaT"], "datetime64[us]"), schema_with(0.1, 0.1), 0)


def test_every_row_is_where_the_frame_says(tiny_encoded, tiny_frame, tiny_schema):
    frame = pd.read_parquet(tiny_frame / "frame.parquet")
    data = EncodedData(tiny_encoded)
    encoder = Encoder.load(tiny_encoded / "encoder")
    assert encoder.layout == data.layout
    for name in SPLITS:
        part = frame[frame["split"] == name]
        split = data.split(name)
        assert split.row_id_B.tolist() == part["row_id"].tolist()
        assert split.label_B.tolist() == part["label"].tolist()
        assert (split.time_B.astype("datetime64[us]") == part["event_timestamp"].dt.tz_localize(None).to_numpy()).all()
        expected = encoder.transform({column: part[column] for column in tiny_schema.input_names})
        assert np.array_equal(split.inputs.ids_BF, expected.ids_BF)
        assert np.array_equal(split.inputs.dense_BN, expected.dense_BN)
        for field, values_BL in expected.sequences.items():
            assert np.array_equal(split.inputs.sequences[field], values_BL)


def test_frequencies_descend_and_add_up(tiny_encoded):
    data = EncodedData(tiny_encoded)
    train = data.split("train")
    for table, counts in data.table_counts().items():
        assert (np.diff(counts[1:]) <= 0).all()
        assert len(counts) == data.layout.table_rows[table]
        if table in data.layout.categorical:
            ids = train.inputs.ids_BF[:, data.layout.categorical.index(table)]
            assert np.bincount(ids, minlength=len(counts)).tolist() == counts.tolist()


def test_record(tiny_encoded, tiny_frame):
    record = StepRecord.load(tiny_encoded)
    frame = pd.read_parquet(tiny_frame / "frame.parquet")
    assert record.rows_in == record.rows_out == len(frame)
    assert record.details["rows"] == frame["split"].value_counts().to_dict()
    assert record.details["positives"] == frame.groupby("split")["label"].sum().to_dict()
    assert record.details["out_of_vocabulary"]["train"]["user_id"] == 0


def test_batch_size_changes_no_id_and_a_second_run_no_byte(
    tmp_path, tiny_frame, tiny_schema, tiny_encoded, monkeypatch
):
    encode(tiny_frame, tiny_schema, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(tiny_encoded)
    monkeypatch.setattr(encode_module, "BATCH_ROWS", 100)
    encode(tiny_frame, tiny_schema, tmp_path / "small")
    for name in SPLITS:
        ours, theirs = (EncodedData(folder).split(name) for folder in (tmp_path / "small", tiny_encoded))
        assert np.array_equal(ours.inputs.ids_BF, theirs.inputs.ids_BF)
        assert np.array_equal(ours.group_B, theirs.group_B)
        np.testing.assert_allclose(ours.inputs.dense_BN, theirs.inputs.dense_BN, rtol=1e-5, atol=1e-6)


def write_frame(folder, tiny_frame, change=lambda frame: frame):
    folder.mkdir()
    frame = change(pd.read_parquet(tiny_frame / "frame.parquet"))
    frame.to_parquet(folder / "frame.parquet", index=False)
    return folder


def test_groups_are_users_even_unknown_ones(tmp_path, tiny_frame, tiny_schema):
    def rename(frame):
        late = frame["split"] != "train"
        return frame.assign(user_id=frame["user_id"].where(~late, "new" + frame["user_id"]))

    frame_folder = write_frame(tmp_path / "frame", tiny_frame, rename)
    encode(frame_folder, tiny_schema, tmp_path / "encoded")
    frame = pd.read_parquet(frame_folder / "frame.parquet")
    data = EncodedData(tmp_path / "encoded")
    group = {}
    for name in SPLITS:
        for user, number in zip(
            frame[frame["split"] == name]["user_id"], data.split(name).group_B.tolist(), strict=True
        ):
            assert group.setdefault(user, number) == number
    assert len(set(group.values())) == len(group)
    train = data.split("train")
    assert np.array_equal(train.group_B, train.inputs.ids_BF[:, data.layout.categorical.index("user_id")])


def test_no_user_no_time_no_numbers(tmp_path):
    (tmp_path / "frame").mkdir()
    frame = {
        "row_id": [0, 1, 2],
        "label": pa.array([0, 1, 0], pa.uint8()),
        "split": list(SPLITS),
        "site": ["a", "b", "a"],
    }
    pq.write_table(pa.table(frame), tmp_path / "frame" / "frame.parquet")
    encode(tmp_path / "frame", schema_with(0.3, 0.3), tmp_path / "encoded")
    data = EncodedData(tmp_path / "encoded")
    assert [data.split(name).inputs.ids_BF.tolist() for name in SPLITS] == [[[1]], [[0]], [[1]]]
    test = data.split("test")
    assert test.inputs.dense_BN.shape == (1, 0)
    assert test.time_B.tolist() == test.group_B.tolist() == [0]
    assert [len(batch) for batch, _ in test.batches(8)] == [1]


def test_layout_survives_json(tiny_encoded):
    layout = Encoder.load(tiny_encoded / "encoder").layout
    read = Layout.from_json(json.loads((tiny_encoded / "layout.json").read_text()))
    assert list(read.table_rows) == list(layout.table_rows) == ["user_id", "city", "item_id", "kind", "device", "tags"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="price"), "no column 'price'"),
        (lambda f: f[f["split"] != "test"], "has no test rows"),
        (lambda f: f.assign(split=f["split"].replace("test", "tset")), "rows of split 'tset'"),
        (lambda f: f.assign(label=2), "a label other than 0 and 1"),
        (lambda f: f.assign(age="old"), "'age' must be numbers"),
    ],
)
def test_broken_frames_are_named(tmp_path, tiny_frame, tiny_schema, change, told):
    folder = write_frame(tmp_path / "frame", tiny_frame, change)
    with pytest.raises(NarrowcastError) as raised:
        encode(folder, tiny_schema, tmp_path / "encoded")
    assert told in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frame"]


def test_absent_and_truncated_frames_are_named(tmp_path, tiny_frame, tiny_schema):
    with pytest.raises(NarrowcastError, match="cannot be read"):
        encode(tmp_path, tiny_schema, tmp_path / "encoded")
    whole = (tiny_frame / "frame.parquet").read_bytes()
    (tmp_path / "frame.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NarrowcastError, match="cannot be read"):
        encode(tmp_path, tiny_schema, tmp_path / "encoded")
