"""Numbers as a reader wants them: rounded to what matters, with their unit."""

import math

NONE = "\u2013"
NARROW_SPACE = "\u202f"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count that fits a narrow place: millions from ten million on."""
    return count(value) if value < 1e7 else f"{three_digits(value / 1e6)}{NARROW_SPACE}M"


def byte_size(value: float | None) -> str:
    """Bytes in powers of 1000, three digits: 812 B, 16.9 kB, 1.72 MB."""
    if value is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = f"{value:.0f}" if unit == "B" else three_digits(value)
    return digits + NARROW_SPACE + unit


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{NARROW_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NARROW_SPACE}min {rest:02d}{NARROW_SPACE}s"
    return f"{minutes // 60}{NARROW_SPACE}h {minutes % 60:02d}{NARROW_SPACE}min"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else three_digits(value) + NARROW_SPACE + "ms"


def percent(share: float | None) -> str:
    """A share as per cent; small ones keep two digits."""
    if share is None:
        return NONE
    value = 100 * share
    digits = 0 if value == 0 or value >= 99.95 else 1 if value >= 1 else 2
    return f"{value:.{digits}f}{NARROW_SPACE}%"


def four_decimals(value: float | None) -> str:
    """AUC, logloss and their like: four decimals, a true minus sign."""
    return NONE if value is None else f"{value:.4f}".replace("-", "\u2212")


def three_decimals(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def times(numerator: float | None, denominator: float | None) -> str:
    """How many times larger: 3 figures and a multiplication sign."""
    if not numerator or not denominator:
        return NONE
    return three_digits(numerator / denominator) + "\u00d7"


def three_digits(value: float) -> str:
    """Three significant digits, never an exponent between 0.001 and a million."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = min(max(0, 2 - math.floor(math.log10(abs(value)))), 6)
    return f"{value:,.{decimals}f}"


def plain(value: object) -> str:
    """Any value of a record: counts with separators, other numbers to four digits, lists joined."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return count(value) if value.is_integer() and abs(value) < 1e12 else f"{value:.4g}".replace("-", "\u2212")
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return str(value)


def join(words: list[str]) -> str:
    """A list as a sentence has it: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(words: str) -> str:
    """With a capital and one full stop; empty stays empty."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}." if words else ""
