"""The byte budget as a user writes it."""

import pytest

from narrowcast.components.search.budget import check_budget, parse_budget
from narrowcast.errors import NarrowcastError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200KB", 200_000),
        ("200 kb", 200_000),
        ("200KiB", 204_800),
        ("1.5MB", 1_500_000),
        ("65536", 65_536),
        ("640B", 640),
        ("1/8", 12_500),
        ("1 / 3", 33_333),
        ("0.125", 12_500),
        (".5", 50_000),
        ("1", 100_000),
        ("2.5/10", 25_000),
    ],
)
def test_sizes_and_ratios(text, expected):
    assert parse_budget(text, full_bytes=100_000) == expected


@pytest.mark.parametrize(
    "text", ["", "small", "0", "0KB", "-3", "1/0", "0/4", "9/8", "12 parsecs", "1e3", "nan", "9" * 400]
)
def test_nonsense_is_one_sentence(text):
    with pytest.raises(NarrowcastError, match="neither a size nor a ratio"):
        parse_budget(text, full_bytes=100_000)


def test_a_budget_below_the_least_says_the_least():
    check_budget(500, 500, "pep")
    with pytest.raises(NarrowcastError, match="499 bytes is below the 500 bytes"):
        check_budget(499, 500, "pep")
