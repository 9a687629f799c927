"""Both indexes of a vocabulary against its definition, with hashes that clash."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.data.vocabulary import LARGE_ROWS, DictIndex, HashIndex, index

words = st.text(min_size=1, max_size=3)


def defined(values, text):
    """The row of a text; of "missing" for none."""
    rows = [row for row, value in enumerate(values) if row > 0 and value == (text or None)]
    return rows[0] if rows else 0


@settings(deadline=None)
@given(st.lists(st.none() | words, unique=True, max_size=30), st.lists(st.none() | st.just("") | words), st.data())
def test_rows_by_their_definition(known, asked, data):
    values = [None, *known]
    asked = [*asked, *data.draw(st.permutations(known))]
    clashes = data.draw(st.integers(1, 40))
    stored = pa.array(values, pa.string())
    indexes = [
        DictIndex(stored),
        HashIndex(stored),
        HashIndex(stored, hash=lambda text: hash(text) % clashes),
        HashIndex(stored, hash=lambda text: -clashes),
    ]
    for one in indexes:
        rows = one.find(asked)
        assert rows.dtype == np.int32
        assert rows.tolist() == [defined(values, text) for text in asked]


@pytest.mark.parametrize("rows", [1, LARGE_ROWS, LARGE_ROWS + 1, 2**18 + 2])
def test_every_row_of_a_vocabulary_is_found(rows):
    values = pa.array([None, *(f"id{i}" for i in range(1, rows))], pa.string())
    made = index(values)
    assert isinstance(made, HashIndex) is (rows > LARGE_ROWS)
    np.testing.assert_array_equal(made.find(values.to_pylist()), np.arange(rows))
    assert made.find(["id0", f"id{rows}", None, ""]).tolist() == [0, 0, 0, 0]
