"""When a schedule fires: cron as Kubeflow Pipelines reads it, checked and counted here before anything is sent.

The server's parser is robfig/cron 1.2 (pkg.go.dev/github.com/robfig/cron): six fields from seconds to weekday. It takes
five fields, too, but as the first five of the six, so that the usual five would fire at other times without a word.
Here five are minute to weekday, and six are sent.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from narrowcast.errors import NarrowcastError

NAMES = {
    "month": ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "weekday": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
"""Of the fields that take names, the name of each number."""
BOUNDS = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day of the month": (1, 31),
    "month": (1, 12),
    "weekday": (0, 6),
}
SHORT = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
YEARS = 5
"""How far the server looks for the next time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cron:
    """`text` has six fields; the sets hold the numbers that each allows. Where neither day field begins with a star
    (or ?), a day needs to be in one of them only."""

    text: str
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def next(self, after: datetime) -> datetime | None:
        """The first time after `after`, in its time zone; None when there is none within five years."""
        time = after.replace(microsecond=0) + timedelta(seconds=1)
        end = after + timedelta(days=366 * YEARS)
        while time <= end:
            midnight = time.replace(hour=0, minute=0, second=0)
            if not self._on(time):
                time = midnight + timedelta(days=1)
            elif time.hour not in self.hours:
                time = time.replace(minute=0, second=0) + timedelta(hours=1)
            elif time.minute not in self.minutes:
                time = time.replace(second=0) + timedelta(minutes=1)
            elif time.second not in self.seconds:
                time += timedelta(seconds=1)
            else:
                return time
        return None

    def upcoming(self, count: int, after: datetime) -> list[datetime]:
        """The next `count` times."""
        times: list[datetime] = []
        while len(times) < count and (time := self.next(times[-1] if times else after)):
            times.append(time)
        return times

    def _on(self, time: datetime) -> bool:
        if time.month not in self.months:
            return False
        by_day, by_weekday = time.day in self.days, time.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday if self.either_day else by_day and by_weekday


def parse(text: str) -> Cron:
    """A schedule from five fields, six that begin with seconds, or a short form such as @daily.

    Raises NarrowcastError that names the field at fault, or when there is no such day.
    """
    fields = SHORT.get(text.strip().lower(), text).split()
    if len(fields) not in (5, 6):
        raise NarrowcastError(
            f"cron '{text}': give five fields (minute, hour, day of the month, month, weekday), such as '0 3 * * *', "
            f"six with seconds before them, or one of {', '.join(SHORT)}"
        )
    fields = ["0", *fields] if len(fields) == 5 else fields
    sets = [_numbers(name, field, text) for name, field in zip(BOUNDS, fields, strict=True)]
    cron = Cron(
        text=" ".join(fields),
        seconds=sets[0],
        minutes=sets[1],
        hours=sets[2],
        days=sets[3],
        months=sets[4],
        weekdays=sets[5],
        either_day=not (_starred(fields[3]) or _starred(fields[5])),
    )
    if cron.next(datetime.now(UTC)) is None:
        raise NarrowcastError(f"cron '{text}' never fires: no such day comes within {YEARS} years; check day and month")
    return cron


def _starred(field: str) -> bool:
    return any(part[:1] in {"*", "?"} for part in field.split(","))


def _numbers(name: str, field: str, text: str) -> frozenset[int]:
    low, high = BOUNDS[name]
    numbers: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if not match:
            raise NarrowcastError(
                f"cron '{text}': the {name} '{field}' is neither a number, a range nor a list of them"
            )
        first, last, step = match.groups()
        start = low if first is None else _number(name, first, text)
        # a number with a step goes on to the end
        stop = (high if first is None or step else start) if last is None else _number(name, last, text)
        if start > stop or step == "0" * len(step or "x"):
            raise NarrowcastError(f"cron '{text}': the {name} '{part}' holds no number")
        numbers |= set(range(start, stop + 1, int(step or 1)))
    return frozenset(numbers)


def _number(name: str, given: str, text: str) -> int:
    low, high = BOUNDS[name]
    names = NAMES.get(name, ())
    if given.lower() in names:
        return names.index(given.lower())
    number = int(given) if given.isascii() and given.isdecimal() else -1
    if not low <= number <= high:
        hint = {"weekday": ", 0 being Sunday, or sun to sat", "month": " or jan to dec"}.get(name, "")
        raise NarrowcastError(f"cron '{text}': the {name} is '{given}', must be {low} to {high}{hint}")
    return number
