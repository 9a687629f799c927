"""Synthetic clicks with a structure that a model can learn, streamed to Parquet; all of it our own choice.

Shape letters: B rows of a chunk, U users, I items, K latent factors, N kinds, M devices.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from narrowcast.components.data.schema import Checks, Field, History, Label, Schema, Source, Timestamp
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_text, writing_directory

CHUNK_ROWS = 1 << 16
NUM_FACTORS = 8
START_MS = 1_704_067_200_000  # 1 January 2024, UTC
DAY_MS = 86_400_000
KINDS = np.array(["film", "series", "music", "book", "game", "news"])
DEVICES = np.array(["phone", "tablet", "desktop", "tv"])
REGIONS = np.array(["north", "south", "east", "west", "islands"])
NUM_TAGS = 40
BIAS = -1.0
BINS = 10_000
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthesised:
    """`bayes_auc` is the AUC of the true probabilities on the labels drawn: the most that a model can hope for."""

    rows: int
    click_rate: float
    bayes_auc: float

    def __str__(self) -> str:
        return f"click rate {self.click_rate:.3f}, AUC of the true probabilities {self.bayes_auc:.4f}"


def synth(
    target: str | Path,
    *,
    rows: int,
    users: int,
    items: int,
    seed: int = 0,
    drift: float = 0.0,
    zipf: float = 1.05,
    days: int = 30,
    history: bool = True,
) -> Synthesised:
    """Write `events.parquet`, `users.parquet`, `items.parquet` and `schema.yaml` to `target`.

    Events are in time order over `days` days. An item of popularity rank r is drawn with weight r^-zipf, a user of
    activity rank r with r^(-zipf/2). The logit of a click adds the product of the user's and the item's factors, the
    item's appeal, and what the item's kind gains on the device. Regions and ages, kinds, tags and prices each tell
    something of the factors, and so does what the user clicked before: histories arise from the log itself, and
    `history` says whether the schema has them.

    `drift`, 0 to 1, is the share of popularity and taste that has given way to others by the last event. Equal
    arguments give equal bytes. Memory grows with `users` and `items`, not with `rows`.
    """
    target = Path(target)
    if min(rows, users, items, days) < 1 or zipf < 0 or not 0 <= drift <= 1:
        raise NarrowcastError(
            "synthetic data needs at least 1 row, user, item and day, zipf >= 0 and drift from 0 to 1, not "
            f"rows={rows}, users={users}, items={items}, days={days}, zipf={zipf}, drift={drift}"
        )
    world = _World(users, items, seed, zipf)
    clicks, shown = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    console = Console(stderr=True)
    with writing_directory(target) as folder:
        pq.write_table(world.users(), folder / "users.parquet")
        pq.write_table(world.items(), folder / "items.parquet")
        with pq.ParquetWriter(folder / "events.parquet", EVENTS) as writer:
            starts = range(0, rows, CHUNK_ROWS)
            for start in track(
                starts, "writing events", console=console, transient=True, disable=not console.is_terminal
            ):
                size = min(CHUNK_ROWS, rows - start)
                events, probability_B = world.events(start, size, (start / rows, (start + size) / rows), drift, days)
                writer.write_table(events)
                bin_B = (probability_B * BINS).astype(np.int64).clip(0, BINS - 1)
                shown += np.bincount(bin_B, minlength=BINS)
                clicks += np.bincount(bin_B, weights=events["click"].to_numpy(), minlength=BINS).astype(np.int64)
        write_text(folder / "schema.yaml", _schema(target.resolve().name, history).to_text())
    return Synthesised(rows=rows, click_rate=float(clicks.sum() / rows), bayes_auc=_auc(clicks, shown - clicks))


EVENTS = pa.schema(
    {
        "event_id": pa.int64(),
        "time_ms": pa.int64(),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "device": pa.string(),
        "slot": pa.int8(),
        "click": pa.int8(),
        "dwell_seconds": pa.float32(),
    }
)


class _World:
    """What is drawn once: factors, attributes, popularity; and from it any chunk of events."""

    def __init__(self, users: int, items: int, seed: int, zipf: float) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        self.kind_I = rng.integers(0, len(KINDS), items)
        centre_NK = rng.normal(0, 0.8, (len(KINDS), NUM_FACTORS))
        self.item_IK = (centre_NK[self.kind_I] + rng.normal(0, 0.5, (items, NUM_FACTORS))).astype(np.float32)
        self.appeal_I = rng.normal(0, 0.8, items).astype(np.float32)
        self.region_U = rng.integers(0, len(REGIONS), users)
        region_RK = rng.normal(0, 0.4, (len(REGIONS), NUM_FACTORS))
        self.user_UK = (region_RK[self.region_U] + rng.normal(0, 0.5, (users, NUM_FACTORS))).astype(np.float32)
        self.later_UK = rng.normal(0, 0.6, (users, NUM_FACTORS)).astype(np.float32)
        self.gain_MN = rng.normal(0, 0.5, (len(DEVICES), len(KINDS))).astype(np.float32)
        self.user_share_U = _shares(users, zipf / 2)
        self.item_share_I = _shares(items, zipf)
        # rank to id, so that an id's size tells nothing
        self.user_of_rank_U = rng.permutation(users)
        self.item_of_rank_I, self.later_item_of_rank_I = rng.permutation(items), rng.permutation(items)

    def users(self) -> pa.Table:
        rng = np.random.default_rng([self.seed, 1])
        age_U = 38 + 12 * self.user_UK[:, 0] + rng.normal(0, 8, len(self.user_UK))
        return pa.table(
            {
                "user_id": np.arange(len(age_U)),
                "age": age_U.clip(13, 90).astype(np.int8),
                "region": pa.array(REGIONS[self.region_U], mask=rng.random(len(age_U)) < 0.05),
            }
        )

    def items(self) -> pa.Table:
        rng = np.random.default_rng([self.seed, 2])
        price_I = np.exp(1.5 + 0.5 * self.item_IK[:, 1] + rng.normal(0, 0.5, len(self.item_IK)))
        # the first tag follows the item's strongest factor, the others are any
        per_factor = NUM_TAGS // NUM_FACTORS
        first_I = np.argmax(self.item_IK, axis=1) * per_factor + rng.integers(0, per_factor, len(price_I))
        rest_I3 = rng.integers(0, NUM_TAGS, (len(price_I), 3))
        tags = [
            [f"tag{tag}" for tag in dict.fromkeys([first, *rest[:count]])]
            for first, rest, count in zip(first_I, rest_I3, rng.integers(0, 4, len(price_I)), strict=True)
        ]
        return pa.table(
            {
                "item_id": np.arange(len(price_I)),
                "kind": KINDS[self.kind_I],
                "price": price_I.round(2).astype(np.float32),
                "tags": pa.array(tags, pa.list_(pa.string())),
            }
        )

    def events(
        self, start: int, size: int, span: tuple[float, float], drift: float, days: int
    ) -> tuple[pa.Table, Floats]:
        """Events `start` to `start + size`, which cover the share `span` of the time, and their click probabilities."""
        rng = np.random.default_rng([self.seed, 3, start])
        moment_B = np.sort(rng.uniform(*span, size))
        turned_B = (drift * moment_B).astype(np.float32)
        user_B = self.user_of_rank_U[_draw(rng, self.user_share_U, size)]
        rank_B = _draw(rng, self.item_share_I, size)
        item_B = np.where(rng.random(size) < turned_B, self.later_item_of_rank_I[rank_B], self.item_of_rank_I[rank_B])
        device_B = rng.choice(len(DEVICES), size, p=[0.5, 0.1, 0.3, 0.1])
        slot_B = rng.integers(1, 6, size)
        angle_B1 = (turned_B * np.float32(np.pi / 2))[:, None]
        taste_BK = np.cos(angle_B1) * self.user_UK[user_B] + np.sin(angle_B1) * self.later_UK[user_B]
        logit_B = np.einsum("BK,BK->B", taste_BK, self.item_IK[item_B]) + self.appeal_I[item_B]
        logit_B += self.gain_MN[device_B, self.kind_I[item_B]] - np.float32(0.2) * slot_B.astype(np.float32)
        probability_B = 1 / (1 + np.exp(-(logit_B + np.float32(BIAS))))
        click_B = rng.random(size) < probability_B
        columns: dict[str, Any] = {
            "event_id": np.arange(start, start + size),
            "time_ms": START_MS + (moment_B * days * DAY_MS).astype(np.int64),
            "user_id": user_B,
            "item_id": item_B,
            "device": DEVICES[device_B],
            "slot": slot_B,
            "click": click_B.astype(np.int8),
            "dwell_seconds": np.where(click_B, rng.exponential(60, size), 0).round(1),
        }
        return pa.table(
            [pa.array(columns[f.name]).cast(f.type, safe=False) for f in EVENTS], schema=EVENTS
        ), probability_B


def _shares(count: int, exponent: float) -> NDArray[np.float64]:
    """Cumulative shares of ranks 1 to `count` whose weights fall as rank^-exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights) / weights.sum()


def _draw(rng: np.random.Generator, shares: NDArray[np.float64], size: int) -> Ints:
    return np.searchsorted(shares, rng.random(size), side="right").clip(0, len(shares) - 1)


def _auc(clicks: Ints, others: Ints) -> float:
    """AUC from counts by bins of ascending score; rows of one bin count as ties. 0.5 where there is but one class."""
    pairs = int(clicks.sum()) * int(others.sum())
    below = np.cumsum(others) - others
    return float((clicks * (below + others / 2)).sum() / pairs) if pairs else 0.5


def _schema(name: str, history: bool) -> Schema:
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return Schema(
        name=plain if plain[:1].isalpha() else f"synthetic_{plain}",
        description="Synthetic clicks; item taste, appeal, kind by device and slot make a click",
        sources={
            "events": Source(path="events.parquet", format="parquet"),
            "users": Source(path="users.parquet", format="parquet"),
            "items": Source(path="items.parquet", format="parquet"),
        },
        user="user_id",
        item="item_id",
        timestamp=Timestamp(column="time_ms", unit="ms"),
        label=Label(column="click"),
        leakage=("dwell_seconds",),
        fields=(
            Field(name="user_id", type="categorical", owner="user"),
            Field(name="age", type="numeric", owner="user", min=0, max=120),
            Field(name="region", type="categorical", owner="user", nullable=True, values=tuple(REGIONS.tolist())),
            Field(name="item_id", type="categorical", owner="item"),
            Field(name="kind", type="categorical", owner="item", values=tuple(KINDS.tolist())),
            Field(name="price", type="numeric", owner="item", min=0, transform="log"),
            Field(name="tags", type="sequence", owner="item", max_length=4),
            Field(name="device", type="categorical", values=tuple(DEVICES.tolist())),
            Field(name="slot", type="categorical"),
        ),
        history=History() if history else None,
        checks=Checks(label_rate=(0.05, 0.8), row_key=("event_id",)),
    )
