"""The page's charts. Each takes plain numbers and returns one SVG with a label that says what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from narrowcast.components.report.svg import Scale, axes, drawing, element, padded, path, text
from narrowcast.components.report.values import byte_size, count, four_decimals
from narrowcast.components.train.plan import TablePlan

WIDTH, HEIGHT = 460.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 450.0, 48.0, 266.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A curve by epoch: `kind` is its style class (full, compact), `best` the epoch to ring."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    best: float | None = None
    dashed: bool = False


def curves(series: Sequence[Series], *, title: str, label: str) -> Markup:
    """Values by epoch, the kept epoch ringed."""
    everything = [p for s in series for p in s.points]
    epochs = sorted({x for x, _ in everything})
    x = Scale(low=epochs[0], high=max(epochs[-1], epochs[0] + 1), start=LEFT + 10, stop=RIGHT - 10)
    low, high = padded([v for _, v in everything])
    y = Scale(low=low, high=high, start=BOTTOM, stop=TOP)
    ticks = epochs[:: max(1, -(-len(epochs) // 10))]
    parts = axes(
        Scale(low=x.low, high=x.high, start=LEFT, stop=RIGHT),
        y,
        x_title="epoch",
        y_title=title,
        x_format=count,
        x_ticks=[],
    )
    parts += [text(x(e), BOTTOM + 18, count(e), "tick", "middle") for e in ticks]
    for s in series:
        placed = [(x(e), y(v)) for e, v in s.points]
        parts.append(path(placed, f"curve {s.kind}{' dashed' if s.dashed else ''}"))
        for (px, py), (e, v) in zip(placed, s.points, strict=True):
            hint = element("title", f"{s.name}, epoch {count(e)}: {four_decimals(v)}")
            parts.append(element("circle", hint, cx=px, cy=py, r=3, class_=f"dot {s.kind}"))
            if e == s.best:
                parts.append(element("circle", cx=px, cy=py, r=7, class_=f"ring {s.kind}"))
    parts += _legend([(s.name, s.kind) for s in series if not s.dashed])
    return drawing(WIDTH, HEIGHT, label, *parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A model as bytes and AUC; `kind` is full, compact, trial or reference; `settings` how it was made, as text."""

    name: str
    kind: str
    stored_bytes: float
    auc: float
    settings: str = ""


def frontier(points: Sequence[Point], budget: float | None, *, label: str) -> Markup:
    """AUC against stored bytes on a logarithmic axis, the budget as a line."""
    sizes = [p.stored_bytes for p in points] + ([budget] if budget else [])
    x = Scale(low=min(sizes) / 1.35, high=max(sizes) * 1.35, start=LEFT, stop=RIGHT, log=True)
    low, high = padded([p.auc for p in points], 0.16)
    y = Scale(low=low, high=high, start=BOTTOM, stop=TOP)
    parts = axes(
        x, y, x_title="stored bytes of the embedding tables (log)", y_title="validation AUC", x_format=_short_bytes
    )
    taken = [(x(p.stored_bytes) - 7, y(p.auc) - 7, x(p.stored_bytes) + 7, y(p.auc) + 7) for p in points]
    if budget:
        parts.append(path([(x(budget), TOP - 4), (x(budget), BOTTOM)], "limit"))
        words = f"budget {byte_size(budget)}"
        at_left = x(budget) > (LEFT + RIGHT) / 2
        parts.append(text(x(budget) + (-6 if at_left else 6), TOP + 6, words, "note", "end" if at_left else None))
        taken.append((x(budget) - 6, TOP, x(budget) + 6, BOTTOM))
        width = 6.6 * len(words)
        taken.append(
            (x(budget) - width if at_left else x(budget), TOP - 8, x(budget) + (0 if at_left else width), TOP + 10)
        )
    order = {"trial": 0, "reference": 1, "full": 2, "compact": 3}
    for p in sorted(points, key=lambda p: order[p.kind]):
        hint = element("title", f"{p.name}: {byte_size(p.stored_bytes)}, AUC {four_decimals(p.auc)}")
        parts.append(_mark(x(p.stored_bytes), y(p.auc), p.kind, hint))
    for p in sorted(points, key=lambda p: -order[p.kind]):
        if p.kind != "trial":
            parts += _label_beside(x(p.stored_bytes), y(p.auc), p.name, p.kind, taken)
    present = {p.kind for p in points}
    legend = [("full", "full"), ("compact", "compact"), ("trial", "trial"), ("reference", "reference")]
    parts += _legend([(name, kind) for name, kind in legend if kind in present])
    return drawing(WIDTH, HEIGHT, label, *parts)


def calibration(curve: Sequence[tuple[float, float, float]], *, label: str) -> Markup:
    """Observed click rate against predicted, in bins of (predicted, observed, rows); area of a dot by its rows."""
    top = max(max(p, o) for p, o, _ in curve) * 1.08
    low = min(min(p, o) for p, o, _ in curve)
    low = 0.0 if low < 0.3 * top else low * 0.94
    x = Scale(low=low, high=min(top, 1.0), start=LEFT, stop=RIGHT)
    y = Scale(low=low, high=min(top, 1.0), start=BOTTOM, stop=TOP)
    decimals = 1 if x.ticks()[1] - x.ticks()[0] > 0.09 else 2 if x.ticks()[1] - x.ticks()[0] > 0.009 else 3
    parts = axes(
        x, y, x_title="predicted probability", y_title="observed click rate", x_format=lambda v: f"{v:.{decimals}f}"
    )
    parts.append(path([(x(x.low), y(x.low)), (x(x.high), y(x.high))], "limit"))
    placed = [(x(p), y(o)) for p, o, _ in curve]
    parts.append(path(placed, "curve compact"))
    most = max(n for _, _, n in curve) or 1
    for (px, py), (p, o, n) in zip(placed, curve, strict=True):
        hint = element("title", f"predicted {four_decimals(p)}, observed {four_decimals(o)}, {count(n)} rows")
        parts.append(element("circle", hint, cx=px, cy=py, r=2.5 + 4.5 * (n / most) ** 0.5, class_="dot compact"))
    parts += _legend([("packed model", "compact"), ("perfect", "perfect")])
    return drawing(WIDTH, HEIGHT, label, *parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """`shown` is the value as text; `over` colours what is past its limit."""

    name: str
    value: float
    shown: str
    over: bool = False


def bars(rows: Sequence[Bar], limit: float | None, *, limit_text: str, title: str, label: str) -> Markup:
    """One bar a row in the order given, from zero, with the limit as a line."""
    height = 56 + 24 * len(rows)
    left, right = 128.0, WIDTH - 66
    x = Scale(low=0, high=max([row.value for row in rows] + [limit or 0]) or 1, start=left, stop=right)
    parts = [text(0, 14, title, "axis-title")]
    for i, row in enumerate(rows):
        middle, tone = 62 + 24 * i, " over" if row.over else ""
        parts += [
            text(left - 10, middle + 4, _cut(row.name, 17), "name", "end"),
            element("rect", x=left, y=middle - 7, width=right - left, height=14, class_="track"),
            element("rect", x=left, y=middle - 7, width=max(1.0, x(row.value) - left), height=14, class_=f"bar{tone}"),
            text(right + 8, middle + 4, row.shown, f"name{tone}"),
        ]
    if limit is not None:
        parts.append(path([(x(limit), 40), (x(limit), height - 6)], "limit"))
        parts.append(text(x(limit), 33, f"limit {limit_text}", "note", "end" if x(limit) > WIDTH * 0.6 else "middle"))
    return drawing(WIDTH, height, label, *parts)


def squares(full_bytes: float, packed_bytes: float, *, label: str) -> Markup:
    """Both sizes as areas to scale, the packed tables inside the full ones."""
    side = 190.0
    small = max(2.0, side * min(1.0, packed_bytes / full_bytes) ** 0.5)
    parts = [
        element("rect", x=1, y=1, width=side, height=side, rx=3, class_="area full"),
        element(
            "rect", x=1, y=1 + side - small, width=small, height=small, rx=min(3.0, small / 4), class_="area compact"
        ),
        text(12, 24, f"full {byte_size(full_bytes)}", "name"),
    ]
    inside = small > 110
    parts.append(
        text(
            10 if inside else small + 10,
            side - 9,
            f"packed {byte_size(packed_bytes)}",
            "name inside" if inside else "name strong",
        )
    )
    return drawing(side + 2, side + 2, label, *parts, class_="squares")


def table_box(table: TablePlan, width: int, *, label: str) -> Markup:
    """What is left of one table: across its columns, downwards its rows, hottest on top; darker means more bits."""
    side = 120.0
    parts = [element("rect", x=0.5, y=0.5, width=side, height=side, class_="whole")]
    for block in table.blocks:
        top = side * block.start / table.rows
        height = max(1.0, side * (block.stop - block.start) / table.rows)
        for first, last in _runs(block.columns):
            left, wide = side * first / width, side * (last - first) / width
            parts.append(
                element("rect", x=left + 0.5, y=top + 0.5, width=wide, height=height, class_=f"kept bits{block.bits}")
            )
    return drawing(side + 1, side + 1, label, *parts, class_="box")


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring columns as (first, last + 1)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs


def _legend(entries: Sequence[tuple[str, str]]) -> list[Markup]:
    """Right-aligned on the title's line."""
    parts: list[Markup] = []
    x = RIGHT
    for name, kind in reversed(entries):
        x -= 7.0 * len(name)
        parts.append(text(x, TOP - 30, name, "legend"))
        x -= 13
        if kind == "perfect":
            parts.append(path([(x - 8, TOP - 34), (x + 6, TOP - 34)], "limit"))
        else:
            parts.append(_mark(x, TOP - 34, kind))
        x -= 20
    return parts


def _mark(x: float, y: float, kind: str, *inside: Markup) -> Markup:
    if kind == "full":
        return element("rect", *inside, x=x - 5, y=y - 5, width=10, height=10, class_="dot full")
    if kind == "reference":
        return element(
            "rect",
            *inside,
            x=x - 4.5,
            y=y - 4.5,
            width=9,
            height=9,
            class_="dot reference",
            transform=f"rotate(45 {x:.2f} {y:.2f})",
        )
    radius = 6 if kind == "compact" else 4.5
    return element("circle", *inside, cx=x, cy=y, r=radius, class_=f"dot {kind}")


def _label_beside(
    x: float, y: float, words: str, kind: str, taken: list[tuple[float, float, float, float]]
) -> list[Markup]:
    """The words at the first free place around a point; none where all are taken (the point's hint still says it)."""
    words = _cut(words, 22)
    wide = 6.6 * len(words)
    places = [
        (x + 11, y + 4, None, x + 11),
        (x - 11, y + 4, "end", x - 11 - wide),
        (x, y - 12, "middle", x - wide / 2),
        (x, y + 20, "middle", x - wide / 2),
    ]
    for text_x, text_y, anchor, left in places:
        box = (left, text_y - 11, left + wide, text_y + 3)
        fits = left >= LEFT and left + wide <= RIGHT and text_y - 11 >= TOP - 20 and text_y < BOTTOM
        if fits and not any(a < box[2] and c > box[0] and b < box[3] and d > box[1] for a, b, c, d in taken):
            taken.append(box)
            return [text(text_x, text_y, words, f"note {kind}", anchor)]
    return []


def _short_bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
