"""A first draft of a schema from one file: every guess a line with its reason, for a person to mend."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from rich.console import Console
from sklearn.metrics import roc_auc_score

from narrowcast.components.data.columns import to_number
from narrowcast.components.data.profile import Column, Profile
from narrowcast.components.data.schema import RESERVED, Schema
from narrowcast.errors import NarrowcastError

USER = re.compile(r"(user|member|customer|visitor|client|account|shopper|reader)s?(_?(id|key|no))?|uid")
ITEM = re.compile(
    r"(item|movie|film|video|product|article|news|song|track|book|ad|advert|listing|post|creative|document|doc|content)s?"
    r"(_?(id|key|no))?|sku|asin|iid"
)
CLICKS = re.compile(r"(is_?)?(click(ed|s)?|label|target|y|convert(ed)?|conversion|purchas(ed?|es)|bought|ordered)")
RATINGS = re.compile(r"(user_?)?(rating|stars?|score|grade)s?")
TIMES = re.compile(r"(.*_)?(time|timestamp|ts|date|datetime|hour|at|when|unixtime|time_?(ms|us))")
IDS = re.compile(
    r"(.*_)?(id|key|code|zip|zip_?code|postal|type|category|class|cluster|hash|year|month|day|weekday|hour|version|slot|"
    r"position|pos|gender|sex|region|country|city|device)"
)
AFTER = re.compile(
    r"(is_?)?(like|follow|comment|forward|share|hate|click|favou?rite|purchase|conversion|order|install|rating)(d|ed|s)?"
    r"|.*(watch|play|dwell|stay|view|listen|reading|session)(ing|ed)?_?(time|seconds|secs|ms|duration|ratio|percent).*"
    r"|.*(long_?view|completed|finished|revenue|profile_?enter|time_?spent|engage).*"
)
UNITS = (("s", 1e8, 5e9), ("ms", 1e11, 5e12), ("us", 1e14, 5e15))
SEPARATORS = ("|", ";", ",", " ")
FEW = 20
"""Whole numbers with at most so many values are taken for categories."""
FEW_ROWS = 100
"""So many rows at least before values that never repeat, or that go with the label, say anything."""
TELLING_AUC = 0.98


def describe(path: Path, name: str | None = None) -> str:
    """The commented YAML of a schema for one CSV, TSV or Parquet file of events; `Schema.from_text` reads it.

    The raw data directory is the file's folder. The guesses go by names, ranges, numbers of distinct values and, for
    leakage and lists in text, by the first rows. Raises NarrowcastError for a file that is absent, empty, broken, or no
    table, or that has no column to make a label of.
    """
    path = Path(path)
    console = Console(stderr=True)
    with console.status(f"reading {path}"):
        text = _Draft(Profile(path), name or path.name.split(".")[0]).text()
    Schema.from_text(text, where=f"the draft for {path}")
    return text


class _Draft:
    """The choices, in the order in which they depend on each other; what a role has taken is left to no other."""

    def __init__(self, profile: Profile, name: str) -> None:
        self.profile = profile
        self.name = _identifier(name)
        self.left = list(profile.columns)
        self.notes: list[str] = []
        self.time, self.unit = self._choose_time()
        self.user = self._choose_key(USER)
        self.item = self._choose_key(ITEM)
        self.label, self.at_least, self.label_note = self._choose_label()
        self._drop_unusable()
        self.row_key = self._choose_row_key()
        self.leaks = self._choose_leaks()
        self.owners = self._owners()
        if not (self.left or self.user or self.item):
            raise NarrowcastError(
                f"{profile.path} has no column to make a field of beside its label, time and row number: add features"
            )

    def text(self) -> str:
        source = dict(_source_items(self.profile.source))
        label: dict[str, Any] = {"column": self.label.name}
        if self.at_least is not None:
            label["at_least"] = int(self.at_least) if self.at_least.is_integer() else self.at_least
        lines = [
            f"# Drafted from {self.profile.rows:,} rows of {self.profile.path.name}; counts of values are estimates.",
            "# Check the label, the keys, the time, and above all that no field is known only after the event.",
            f"name: {_scalar(self.name)}",
            "sources:",
            f"  events: {_flow(source)}",
        ]
        keys = (("user", self.user), ("item", self.item))
        for role, key in keys:
            note = f"  # about {key.distinct:,} values" if key else f"# {role}: FIELD  # no column looks like its key"
            lines.append(f"{role}: {_identifier(key.name)}{note}" if key else note)
        if self.time:
            lines.append(f"timestamp: {_flow({'column': self.time.name, 'unit': self.unit})}")
        else:
            lines.append("# timestamp: {column: COLUMN, unit: s}  # none found: the split is at random")
        lines.append(f"label: {_flow(label)}  # {self.label_note}")
        if self.leaks:
            lines.append("leakage:  # refused as inputs; make a field of what is known before the event after all")
            lines += [f"  - {_scalar(name)}  # {reason}" for name, reason in self.leaks.items()]
        lines += ["fields:", *self._field_lines()]
        lines += [f"  # {note}" for note in self.notes]
        if self.user and self.item and self.time:
            lines.append("history: {max_length: 50}  # the user's last clicked items")
        lines += ["checks:", f"  label_rate: {_flow(self._label_rate())}"]
        example = [c.name for c in (self.user, self.item, self.time) if c] or ["COLUMN"]
        lines.append(f"  row_key: {_flow([self.row_key])}" if self.row_key else f"  # row_key: {_flow(example)}")
        return "\n".join(lines) + "\n"

    def _take(self, column: Column) -> Column:
        self.left.remove(column)
        return column

    def _choose_time(self) -> tuple[Column | None, str]:
        found = []
        for column in self.left:
            unit = _time_unit(column, self.profile.sample[column.name])
            if unit:
                found.append((column, unit))
        if not found:
            return None, ""
        column, unit = max(found, key=lambda pair: pair[0].distinct)
        for other, _ in found:
            if other is not column:
                self.notes.append(f"left out {_scalar(other.name)}: another time")
                self._take(other)
        return self._take(column), unit

    def _choose_key(self, pattern: re.Pattern[str]) -> Column | None:
        found = [c for c in self.left if pattern.fullmatch(_words(c.name)) and (c.kind == "text" or c.whole)]
        return self._take(min(found, key=lambda c: not _words(c.name).endswith("id"))) if found else None

    def _choose_label(self) -> tuple[Column, float | None, str]:
        numbers = [c for c in self.left if c.kind == "number" and c.distinct > 1]
        binary = [c for c in numbers if c.whole and c.low == 0 and c.high == 1]
        clicks = [c for c in binary if CLICKS.fullmatch(_words(c.name))]
        ratings = [c for c in numbers if RATINGS.fullmatch(_words(c.name))]
        if clicks or (binary and not ratings):
            column = (clicks or binary)[0]
            others = ", ".join(c.name for c in binary if c is not column)
            guess = "" if clicks else "a guess: it has only 0 and 1; "
            return self._take(column), None, f"{guess}{column.mean:.3f} are 1{f'; or {others}?' if others else ''}"
        if not numbers:
            raise NarrowcastError(
                f"{self.profile.path} has no column of numbers to make a label of: add one that is 1 for a click and 0 "
                "for none"
            )
        column = (ratings or numbers[::-1])[0]
        values = _numbers(self.profile.sample[column.name]).dropna()
        at_least = min(values.unique(), key=lambda v: abs((values >= v).mean() - 0.5), default=column.mean)
        guess = "" if ratings else "A GUESS, no column looks like a click; "
        share = (values >= at_least).mean()
        return self._take(column), float(at_least), f"{guess}{column.low:g} to {column.high:g}; {share:.3f} reach it"

    def _drop_unusable(self) -> None:
        for column in list(self.left):
            if column.kind in {"time", "other"} or column.distinct <= 1:
                why = "one value throughout" if column.distinct <= 1 else "neither number, id nor list"
                self.notes.append(f"left out {_scalar(column.name)}: {why}")
                self._take(column)

    def _choose_row_key(self) -> str | None:
        """A column of ids, each in one row only; free text that never repeats is left out with it."""
        row_key = None
        for column in list(self.left):
            if column.kind == "list" or column.nulls or column.distinct < 0.5 * max(self.profile.rows, FEW_ROWS):
                continue
            if (column.kind == "text" or (column.whole and IDS.fullmatch(_words(column.name)))) and (
                self.profile.is_unique(column.name)
            ):
                self.notes.append(f"left out {_scalar(column.name)}: a value of its own in every row")
                row_key = row_key or self._take(column).name
        return row_key

    def _choose_leaks(self) -> dict[str, str]:
        leaks = {}
        if self.at_least is not None:
            leaks[self.label.name] = "the label itself"
        label = _numbers(self.profile.sample[self.label.name])
        label = (label >= (1 if self.at_least is None else self.at_least)).where(label.notna())
        for column in list(self.left):
            auc = 0.5 if column.kind == "list" else _telling(self.profile.sample[column.name], label)
            if AFTER.fullmatch(_words(column.name)):
                leaks[column.name] = "by its name"
            elif auc >= TELLING_AUC:
                leaks[column.name] = f"tells the label by itself (AUC {auc:.3f})"
            else:
                continue
            self._take(column)
        return leaks

    def _owners(self) -> dict[str, str]:
        """Columns with one value for every user, or every item, where these come more than once on average."""
        names = [c.name for c in self.left]
        owners: dict[str, str] = {}
        for role, key in (("item", self.item), ("user", self.user)):
            if key and self.profile.rows >= 2 * key.distinct:
                owners |= dict.fromkeys(self.profile.constant_within(key.name, names), role)
        return owners

    def _field_lines(self) -> list[str]:
        taken: set[str] = set()
        lines = []
        for column in self.profile.columns:
            if column in (self.user, self.item) or column in self.left:
                spec, comment = self._field(column)
                while spec["name"].lower() in taken:
                    spec |= {"name": spec["name"] + "_2", "column": column.name}
                taken.add(spec["name"].lower())
                lines.append(f"  - {_flow(spec)}  # {comment}")
        return lines

    def _field(self, column: Column) -> tuple[dict[str, Any], str]:
        spec: dict[str, Any] = {"name": _identifier(column.name)}
        if spec["name"] != column.name:
            spec["column"] = column.name
        role = {id(self.user): "user", id(self.item): "item"}.get(id(column), self.owners.get(column.name))
        sample = self.profile.sample[column.name]
        separator = _separator(sample) if column.kind == "text" and column not in (self.user, self.item) else None
        missing = f", {column.nulls / self.profile.rows:.1%} missing" if column.nulls else ""
        is_id = column in (self.user, self.item) or IDS.fullmatch(_words(column.name))
        few = column.whole and column.distinct <= FEW
        if column.kind == "list" or separator:
            spec["type"] = "sequence"
            lengths = (
                sample.dropna().map(len) if separator is None else sample.dropna().str.count(re.escape(separator)) + 1
            )
            length = max(1, int(lengths.quantile(0.95))) if len(lengths) else 1
            comment = f"0.95 of the rows have up to {length}{missing}"
        elif column.kind == "number" and not is_id and not few:
            spec["type"] = "numeric"
            comment = f"{column.low:g} to {column.high:g}{missing}"
        else:
            spec["type"] = "categorical"
            common = [" ".join(str(value).split())[:20] for value in sample.value_counts().index[:3]]
            comment = f"about {column.distinct:,} values, such as {', '.join(common)}{missing}"
        if role:
            spec["owner"] = role
        if spec["type"] == "categorical" and column.distinct > 1000:
            spec["min_count"] = 2
        if spec["type"] == "numeric" and column.low >= 0:
            spec["min"] = 0
            spec |= {"transform": "log"} if column.high > 1000 else {}
        if column.nulls and column not in (self.user, self.item):
            spec["nullable"] = True
        if spec["type"] == "sequence":
            spec |= {"separator": separator} if separator else {}
            spec["max_length"] = min(length, 50)
        return spec, comment

    def _label_rate(self) -> list[float]:
        """A third of the rate seen to three times it, but at most half way from it to 1."""
        values = _numbers(self.profile.sample[self.label.name]).dropna()
        rate = self.label.mean if self.at_least is None else float((values >= self.at_least).mean())
        return [round(rate / 3, 4), round(min(rate * 3, (1 + rate) / 2), 4)]


def _time_unit(column: Column, sample: pd.Series) -> str | None:
    if column.kind == "time":
        return "iso"
    if column.kind != "number" or not TIMES.fullmatch(_words(column.name)):
        return None
    for unit, low, high in UNITS:
        if low <= column.low and column.high <= high:
            return unit
    if column.whole and column.low >= 1_000_000 and column.high < 100_000_000:
        hours = "20" + sample.dropna().astype(str).str.removesuffix(".0").str.zfill(8)
        if pd.to_datetime(hours, format="%Y%m%d%H", errors="coerce").notna().all():
            return "YYMMDDHH"
    return None


def _numbers(values: pd.Series) -> pd.Series:
    """As ingestion reads them, true and false as 1 and 0; NaN where there is none."""
    return to_number(pa.array(values, from_pandas=True))[0].to_pandas().astype(float).set_axis(values.index)


def _telling(values: pd.Series, label: pd.Series) -> float:
    """AUC of the label by this column alone: by its numbers, or by the click rate of each of a few values."""
    known = values.notna() & label.notna()
    values, clicks = values[known], label[known].astype(bool)
    if len(clicks) < FEW_ROWS or clicks.nunique() < 2:
        return 0.5
    scores = clicks.groupby(values, observed=True).transform("mean") if values.nunique() <= FEW else _numbers(values)
    if scores.isna().any():
        return 0.5
    auc = float(roc_auc_score(clicks, scores))
    return max(auc, 1 - auc)


def _separator(sample: pd.Series) -> str | None:
    """What separates the elements of lists in text: elements that recombine are fewer than the texts they make."""
    texts = sample.dropna().astype(str)
    for separator in SEPARATORS:
        if texts.empty or texts.str.contains(separator, regex=False).mean() < 0.3:
            continue
        distinct = texts.drop_duplicates()
        elements = distinct.str.split(separator, regex=False).explode().nunique()
        if elements < len(distinct) * (0.5 if separator == " " else 1.0):
            return separator
    return None


def _words(name: str) -> str:
    """The name in lower case with underscores, without the type that some headers append (`age:token`)."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r":\w+$", "", name.strip()))
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _identifier(name: str) -> str:
    """The raw name where it is a plain identifier and not reserved, else the nearest such."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", re.sub(r":\w+$", "", name.strip())).strip("_")
    plain = plain if plain[:1].isalpha() else f"column_{plain}".strip("_")
    derived = {f"{owner}_{what}" for owner in ("user", "item") for what in ("events", "click_rate")}
    return f"{plain}_raw" if plain.lower() in {*RESERVED, *derived} else plain


def _source_items(source: Any) -> Sequence[tuple[str, Any]]:
    items: list[tuple[str, Any]] = [("path", source.path), ("format", source.format)]
    return [*items, ("columns", list(source.columns))] if source.columns else items


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=np.inf).strip()


def _scalar(text: str) -> str:
    return _flow([text])[1:-1]
