"""Cron as the server reads it: robfig/cron 1.2, six fields."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.cron import parse

START = datetime(2026, 11, 27, 22, 58, 30, tzinfo=UTC)  # a Friday


@pytest.mark.parametrize(
    ("given", "sent", "times"),
    [
        ("0 3 * * *", "0 0 3 * * *", ["2026-11-28 03:00:00", "2026-11-29 03:00:00"]),
        ("30 0 3 * * *", "30 0 3 * * *", ["2026-11-28 03:00:30", "2026-11-29 03:00:30"]),
        ("*/20 22-23 * * *", "0 */20 22-23 * * *", ["2026-11-27 23:00:00", "2026-11-27 23:20:00"]),
        ("50/5 * * * *", "0 50/5 * * * *", ["2026-11-27 23:50:00", "2026-11-27 23:55:00"]),
        ("0 5 * * mon", "0 0 5 * * mon", ["2026-11-30 05:00:00", "2026-12-07 05:00:00"]),
        ("0 5 * * 0", "0 0 5 * * 0", ["2026-11-29 05:00:00", "2026-12-06 05:00:00"]),
        ("0 5 1 * mon", "0 0 5 1 * mon", ["2026-11-30 05:00:00", "2026-12-01 05:00:00"]),
        ("0 5 */2 * mon", "0 0 5 */2 * mon", ["2026-12-07 05:00:00", "2026-12-21 05:00:00"]),
        ("0 0 29 feb ?", "0 0 0 29 feb ?", ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]),
        ("@monthly", "0 0 0 1 * *", ["2026-12-01 00:00:00", "2027-01-01 00:00:00"]),
        ("@weekly", "0 0 0 * * 0", ["2026-11-29 00:00:00", "2026-12-06 00:00:00"]),
    ],
)
def test_what_is_sent_and_when_it_fires(given, sent, times):
    cron = parse(given)
    assert cron.text == sent
    assert [f"{time:%Y-%m-%d %H:%M:%S}" for time in cron.upcoming(2, START)] == times


def fires(cron, time):
    """The definition: every field allows it, and a day by both day fields or, where neither has a star, by one."""
    days = [time.day in cron.days, time.isoweekday() % 7 in cron.weekdays]
    fields = [
        time.second in cron.seconds,
        time.minute in cron.minutes,
        time.hour in cron.hours,
        time.month in cron.months,
    ]
    return all(fields) and (any(days) if cron.either_day else all(days))


@pytest.mark.parametrize("seed", range(30))
def test_the_next_time_is_the_first_second_that_every_field_allows(seed):
    rng = random.Random(seed)

    def field(low, high):
        first = rng.randint(low, high)
        return rng.choice(
            ["*", f"{first}", f"*/{rng.randint(2, 9)}", f"{first}-{high}", f"{low},{first}", f"{first}/7"]
        )

    day = rng.choice(["*", "27-29", "28"])
    cron = parse(f"{field(0, 59)} {field(0, 59)} {field(0, 23)} {day} * {rng.choice(['*', 'fri-sat', '0'])}")
    found = cron.next(START)
    second = START + timedelta(seconds=1)
    for _ in range(100_000):  # more than a day
        if fires(cron, second):
            break
        assert second < found
        second += timedelta(seconds=1)
    else:
        assert second <= found
        return
    assert found == second


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("* * *", r"cron '\* \* \*': give five fields"),
        ("", "give five fields"),
        ("@nightly", "or one of @yearly"),
        ("60 * * * *", "the minute is '60', must be 0 to 59"),
        ("0 24 * * *", "the hour is '24', must be 0 to 23"),
        ("0 0 0 * *", "the day of the month is '0', must be 1 to 31"),
        ("0 0 * 13 *", "the month is '13', must be 1 to 12 or jan to dec"),
        ("0 0 * * 7", "the weekday is '7', must be 0 to 6, 0 being Sunday"),
        ("0 0 * * friday", "the weekday is 'friday'"),
        ("0 0 * fri *", "the month is 'fri'"),
        ("70 0 0 * * *", "the second is '70'"),
        ("0 5-3 * * *", "the hour '5-3' holds no number"),
        ("*/0 * * * *", r"the minute '\*/0' holds no number"),
        ("1,,2 * * * *", "the minute '1,,2' is neither a number, a range"),
        ("L * * * *", "the minute is 'L'"),
        ("1-2-3 * * * *", "the minute '1-2-3' is neither"),
        ("٣ * * * *", "the minute is '٣'"),
        ("0 0 30 2 *", "never fires"),
    ],
)
def test_nonsense_names_its_field(text, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        parse(text)
