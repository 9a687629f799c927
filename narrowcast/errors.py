"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class NarrowcastError(Exception):
    """Bad input or a failed promise, in one sentence: what is wrong, where, and how to mend it.

    Every entry point prints it as `error: <sentence>` and exits with status 1; a traceback that reaches a user is a
    defect.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: the closest valid one, or all of them when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"valid names: {', '.join(names)}"
