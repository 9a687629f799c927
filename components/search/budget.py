"""The byte budget a user gives: a size or a ratio."""

import re

from narrowcast.errors import NarrowcastError

UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
NUMBER = r"(\d{1,18}(?:\.\d{1,18})?|\.\d{1,18})"


def parse_budget(text: str, full_bytes: int) -> int:
    """Bytes that `text` allows, rounded down.

    A size: '200KB' (1000 bytes each), '200KiB' (1024), '1.5MB', or plain bytes such as '65536'. A ratio of `full_bytes`
    (the float32 tables): '1/8', or a number of at most 1 such as '0.125'. Raises NarrowcastError for anything else.
    """
    cleaned = str(text).strip().lower()
    if ratio := re.fullmatch(rf"{NUMBER}\s*/\s*{NUMBER}", cleaned):
        part, whole = float(ratio[1]), float(ratio[2])
        if 0 < part <= whole:
            return int(full_bytes * part / whole)
    elif (size := re.fullmatch(rf"{NUMBER}\s*([a-z]*)", cleaned)) and size[2] in UNITS:
        value = float(size[1])
        if value > 0:
            return int(full_bytes * value) if value <= 1 and not size[2] else int(value * UNITS[size[2]])
    raise NarrowcastError(
        f"budget '{text}' is neither a size nor a ratio: write it as '200KB', '1.5MiB' or plain bytes, or as '1/8' or "
        "'0.125' of the full float32 tables"
    )


def check_budget(budget_bytes: int, least_bytes: int, method: str) -> None:
    """Raise NarrowcastError when no plan of `method` can be that small."""
    if budget_bytes < least_bytes:
        raise NarrowcastError(
            f"the budget of {budget_bytes:,} bytes is below the {least_bytes:,} bytes that method '{method}' needs at "
            "least on this data: raise the budget, lower the bits, or choose another method"
        )
