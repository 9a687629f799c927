"""A line chart as an SVG file of its own, for the docs: readable on light and dark ground."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from narrowcast.components.report.svg import Scale, axes, element, padded, path, text

WIDTH, HEIGHT = 560.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 430.0, 40.0, 286.0
COLOURS = ("#8b8377", "#b07a16", "#6aa9b5", "#0b7285", "#7a4fa3", "#b3372b", "#2b7548", "#3f5fb0")
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fbf9f5; }
text { fill: #1d1c1a; } .tick, .axis-title { fill: #625d55; font-size: 12px; }
path { fill: none; stroke: #1d1c1a; } .grid { stroke: #e0dad0; } .base { stroke: #625d55; }
.curve { stroke-width: 2.2; stroke-linejoin: round; } .error { stroke-width: 1.2; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """`points` are (x, y); `errors`, where given, are half lengths of the bars drawn through them."""

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] | None = None


def line_chart(lines: Sequence[Line], *, title: str, x_title: str, label: str, log_x: bool = False) -> str:
    """The whole file's text. A line's name stands at its end; `label` is what a screen reader says."""
    if len(lines) > len(COLOURS):
        raise ValueError(f"{len(lines)} lines are too many for one chart: at most {len(COLOURS)}")
    xs = sorted({x for line in lines for x, _ in line.points})
    bars = [line.errors or [0.0] * len(line.points) for line in lines]
    ends = [
        y + sign * error
        for line, errors in zip(lines, bars, strict=True)
        for (_, y), error in zip(line.points, errors, strict=True)
        for sign in (-1, 1)
    ]
    low, high = padded(ends)
    x = Scale(low=xs[0], high=xs[-1], start=LEFT + 12, stop=RIGHT - 12, log=log_x)
    y = Scale(low=low, high=high, start=BOTTOM, stop=TOP)
    frame = Scale(low=0, high=1, start=LEFT, stop=RIGHT)
    parts: list[object] = [element("style", Markup(STYLE))]
    parts += axes(frame, y, x_title=x_title, y_title=title, x_format=str, x_ticks=[])
    for value in xs:
        parts += [
            path([(x(value), BOTTOM), (x(value), BOTTOM + 4)], "base"),
            text(x(value), BOTTOM + 18, f"{value:g}", "tick", "middle"),
        ]
    heights = _apart([y(line.points[-1][1]) for line in lines])
    for line, errors, colour, height in zip(lines, bars, COLOURS, heights, strict=False):
        placed = [(x(px), y(py)) for px, py in line.points]
        drawn: list[object] = [path(placed, "curve")]
        for (px, py), (_, value), error in zip(placed, line.points, errors, strict=True):
            if error:
                drawn.append(path([(px, y(value - error)), (px, y(value + error))], "error"))
            hint = element("title", f"{line.name}: {value:.4f}")
            drawn.append(element("circle", hint, cx=px, cy=py, r=3.5, fill=colour))
        drawn.append(element("circle", cx=RIGHT + 8, cy=height - 4, r=4, fill=colour))
        parts.append(element("g", *(Markup(str(d).replace("<path", f'<path style="stroke: {colour}"')) for d in drawn)))
        parts.append(text(RIGHT + 18, height, line.name))
    size = {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "width": WIDTH, "height": HEIGHT}
    return str(element("svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label, **size)) + "\n"


def _apart(heights: Sequence[float], least: float = 16) -> list[float]:
    """The same heights, moved so that labels in their order do not overlap, all above the base line."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] + 4 for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + least)
    over = max(0.0, placed[-1] - BOTTOM)
    placed[-1] -= over
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - least)
    return [height for _, height in sorted(zip(order, placed, strict=True))]
