"""Drawing by hand in SVG: escaped elements, scales and axes.

Colours and type come from the page's style sheet by class, so that one drawing serves light, dark and print. No ids.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(name: str, *children: object, **attributes: object) -> Markup:
    """One SVG element: text children and attribute values are escaped, `class_` is class, `text_anchor` text-anchor."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{body}</{name}>")


def drawing(width: float, height: float, label: str, *children: object, left: float = 0, class_: str = "") -> Markup:
    """A whole picture; `label` is what a screen reader says instead of it."""
    return element(
        "svg",
        *children,
        viewBox=f"{_number(left)} 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=label,
        class_=class_ or None,
    )


def text(x: float, y: float, words: str, class_: str = "", anchor: str | None = None) -> Markup:
    return element("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], class_: str, curved: float = 0) -> Markup:
    """A line through the points, with corners rounded by `curved` pixels."""
    steps = [f"M{_number(points[0][0])} {_number(points[0][1])}"]
    for i, (x, y) in enumerate(points[1:], 1):
        if curved and i < len(points) - 1:
            before, after = _towards((x, y), points[i - 1], curved), _towards((x, y), points[i + 1], curved)
            steps.append(f"L{before}Q{_number(x)} {_number(y)} {after}")
        else:
            steps.append(f"L{_number(x)} {_number(y)}")
    return element("path", d="".join(steps), class_=class_)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / ((high - low) or 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale, at most `most`."""
        if self.log:
            return self._log_ticks(most)
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [d * 10.0**e for e in decades for d in digits if self.low <= d * 10.0**e <= self.high]
            if len(ticks) <= most:
                break
        return ticks


def axes(
    x: Scale,
    y: Scale,
    *,
    x_title: str,
    y_title: str,
    x_format: Callable[[float], str],
    x_ticks: Sequence[float] | None = None,
) -> list[Markup]:
    """Horizontal grid lines with their values, a base line with ticks, and both titles."""
    top, bottom, left, right = y.stop, y.start, x.start, x.stop
    ticks = y.ticks(5)
    decimals = tick_decimals(ticks)
    parts = [text(0, top - 12, y_title, "axis-title")]
    for value in ticks:
        parts.append(path([(left, y(value)), (right, y(value))], "grid"))
        parts.append(text(left - 8, y(value) + 4, f"{value:.{decimals}f}", "tick", "end"))
    parts.append(path([(left, bottom), (right, bottom)], "base"))
    for value in x.ticks() if x_ticks is None else x_ticks:
        parts.append(path([(x(value), bottom), (x(value), bottom + 4)], "base"))
        parts.append(text(x(value), bottom + 18, x_format(value), "tick", "middle"))
    parts.append(text((left + right) / 2, bottom + 38, x_title, "axis-title", "middle"))
    return parts


def padded(values: Sequence[float], share: float = 0.12) -> tuple[float, float]:
    """The values' range with a margin on both sides."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.05 or 1
    return low - margin, high + margin


def tick_decimals(ticks: Sequence[float]) -> int:
    if len(ticks) < 2:
        return 3
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _towards(corner: tuple[float, float], to: tuple[float, float], by: float) -> str:
    dx, dy = to[0] - corner[0], to[1] - corner[1]
    length = math.hypot(dx, dy) or 1
    by = min(by, length / 2)
    return f"{_number(corner[0] + dx / length * by)} {_number(corner[1] + dy / length * by)}"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
