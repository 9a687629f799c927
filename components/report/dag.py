"""The run as a picture: every step with its duration and rows, wide for a desk and tall for a phone."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from narrowcast.components.report.svg import drawing, element, path, text
from narrowcast.components.report.values import NARROW_SPACE, count, duration, short_count
from narrowcast.records import StepRecord

HEIGHT = 76
DATA_STEPS = ("checkout", "ingest", "validate_raw", "features", "validate_frame", "encode")
LAST_STEPS = ("evaluate", "deploy", "report")
COMPACT_STEPS = ("search", "retrain", "compact")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A step's box: upper left corner and width."""

    step: str
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        return self.y + HEIGHT / 2

    @property
    def centre(self) -> float:
        return self.x + self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + HEIGHT


def wide_dag(records: Mapping[str, StepRecord | None]) -> Markup:
    """Data steps on the first line; below, the full model beside the compact one, then what joins them."""
    pitch, width, bus = 184.0, 160.0, 104.0
    nodes = {step: Node(step=step, x=i * pitch, y=1, width=width) for i, step in enumerate(DATA_STEPS)}
    nodes["train"] = Node(step="train", x=0, y=132, width=width)
    nodes |= {step: Node(step=step, x=i * pitch, y=234, width=width) for i, step in enumerate(COMPACT_STEPS)}
    nodes |= {step: Node(step=step, x=i * pitch, y=183, width=width) for i, step in enumerate(LAST_STEPS, 3)}
    at = nodes.__getitem__
    lines = [[(at(a).right, at(a).middle), (at(b).x, at(b).middle)] for a, b in _pairs(DATA_STEPS)]
    for branch in ("train", "search"):
        end = at(branch)
        lines.append(
            [
                (at("encode").centre, at("encode").bottom),
                (at("encode").centre, bus),
                (-20, bus),
                (-20, end.middle),
                (0, end.middle),
            ]
        )
    lines += [[(at(a).right, at(a).middle), (at(b).x, at(b).middle)] for a, b in _pairs(COMPACT_STEPS)]
    lines += [[(at(a).right, at(a).middle), (at(b).x, at(b).middle)] for a, b in _pairs(LAST_STEPS)]
    join = at("evaluate")
    for branch in ("train", "compact"):
        start, turn = at(branch), join.x - 14
        lines.append([(start.right, start.middle), (turn, start.middle), (turn, join.middle), (join.x, join.middle)])
    return _draw(nodes, lines, records, left=-26, width=5 * pitch + width + 28, height=312, class_="dag wide")


def tall_dag(records: Mapping[str, StepRecord | None]) -> Markup:
    """One step under the other, with the full model beside the compact one."""
    pitch, width, half = 96.0, 340.0, 163.0
    nodes = {step: Node(step=step, x=1, y=1 + i * pitch, width=width) for i, step in enumerate(DATA_STEPS)}
    nodes["train"] = Node(step="train", x=1, y=1 + 6 * pitch, width=half)
    nodes |= {
        step: Node(step=step, x=1 + width - half, y=1 + i * pitch, width=half)
        for i, step in enumerate(COMPACT_STEPS, 6)
    }
    nodes |= {step: Node(step=step, x=1, y=1 + i * pitch, width=width) for i, step in enumerate(LAST_STEPS, 9)}
    pairs = [*_pairs(DATA_STEPS), *_pairs(COMPACT_STEPS), *_pairs(LAST_STEPS)]
    pairs += [("encode", "train"), ("encode", "search"), ("train", "evaluate"), ("compact", "evaluate")]
    lines = []
    for above, below in pairs:
        a, b = nodes[above], nodes[below]
        x = a.centre if a.width <= b.width else b.centre
        lines.append([(x, a.bottom), (x, b.y)])
    return _draw(nodes, lines, records, left=0, width=342, height=12 * pitch - 18, class_="dag tall")


def rows_line(record: StepRecord) -> str:
    if record.rows_in == record.rows_out:
        return f"{short_count(record.rows_out)} rows" if record.rows_out else "no rows"
    return f"{short_count(record.rows_in)} → {short_count(record.rows_out)}"


def _pairs(steps: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(steps))


def _draw(
    nodes: Mapping[str, Node],
    lines: list[list[tuple[float, float]]],
    records: Mapping[str, StepRecord | None],
    *,
    left: float,
    width: float,
    height: float,
    class_: str,
) -> Markup:
    longest = max((r.seconds or 0 for r in records.values() if r), default=0)
    parts = [path(line, "edge", curved=9) for line in lines]
    parts += [_arrow_head(line[-2], line[-1]) for line in lines]
    parts += [_box(node, records.get(node.step), longest) for node in nodes.values()]
    return drawing(width, height, _description(records), *parts, left=left, class_=class_)


def _box(node: Node, record: StepRecord | None, longest: float) -> Markup:
    x, y = node.x + 11, node.y
    refused = sum(record.refused.values()) if record else 0
    parts: list[Markup] = [
        element("rect", x=node.x, y=y, width=node.width, height=HEIGHT, rx=7, class_="node" if record else "node open"),
        text(x, y + 21, node.step, "step"),
    ]
    if record is None:
        parts.append(text(x, y + 38, "this page" if node.step == "report" else "left no record", "rows"))
        return element("g", *parts)
    parts.append(text(x, y + 37, rows_line(record), "rows"))
    if refused:
        parts.append(text(x, y + 52, f"{count(refused)} refused", "refused"))
    parts.append(text(node.right - 11, y + HEIGHT - 9, duration(record.seconds), "time", "end"))
    if longest and record.seconds:
        bar = max(2.0, (node.width - 82) * record.seconds / longest)
        parts.append(element("rect", x=x, y=y + HEIGHT - 13.5, width=bar, height=4, rx=2, class_="bar"))
    return element("g", *parts)


def _arrow_head(before: tuple[float, float], end: tuple[float, float]) -> Markup:
    x, y = end
    side = 4.0
    if before[0] != x:
        return path([(x - 7, y - side), (x - 1, y), (x - 7, y + side)], "edge")
    return path([(x - side, y - 7), (x, y - 1), (x + side, y - 7)], "edge")


def _description(records: Mapping[str, StepRecord | None]) -> str:
    told = [
        f"{step} {duration(r.seconds)}, {rows_line(r)}".replace(NARROW_SPACE, " ")
        for step, r in records.items()
        if r is not None
    ]
    return "The steps in order, train beside search, retrain and compact: " + "; ".join(told)
