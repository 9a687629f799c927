"""Memory and start-up time of a server process, packed against float32, each in a fresh process.

    python benchmarks/memory.py --ids 5000000

Models of random tables, not trained: 26 categorical fields of which 8 hold nearly all ids, id i of a field drawn with
probability about 1/i, a DeepFM head. A server is started, answers its sample request and then requests for 500
candidates, after which the kernel's account of the process is read: resident bytes (RSS), those not shared with other
processes in proportion (PSS), and the most that were ever resident. `none` is the same server with a few ids, so what a
row has more than it is the model's: tables, vocabularies, and what reading them leaves behind. The floor beside it is
what must be there: the stored tables and the vocabularies' text.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from libraries import machine
from load.generator import Answer, run
from load.http1 import HttpSender, request_bytes
from rich.console import Console
from rich.table import Table
from synthetic import draw_ids, table_rows

from narrowcast.components.compact.pack import pack
from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.encoder import Encoder, layout_of
from narrowcast.components.data.ingest import ingest
from narrowcast.components.data.schema import Field, Label, Schema, Source
from narrowcast.components.features.build import build_features
from narrowcast.components.serve import process
from narrowcast.components.train.checkpoint import save_checkpoint
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Plan, full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

NUM_FIELDS = 26
FEW_IDS = 2_000
BITS = {"float32": 32, "int8": 8, "int4": 4}
CANDIDATES = 500
ROWS = 600
"""Events, from which the sample request and the requests are made."""


def make_schema() -> Schema:
    return Schema(
        name="memory",
        sources={"events": Source(path="events.parquet", format="parquet")},
        label=Label(column="click"),
        fields=tuple(Field(name=f"f{i}", type="categorical") for i in range(NUM_FIELDS)),
    )


def write_models(folder: Path, num_ids: int, width: int, kinds: list[str]) -> dict[str, Path]:
    """The packed model of every kind, and `store`, in `folder`."""
    schema = make_schema()
    rows = dict(zip((field.name for field in schema.fields), table_rows(num_ids, NUM_FIELDS), strict=True))
    frame = write_frame(folder, schema, rows)
    encoder = make_encoder(schema, rows)
    write_encoded(folder / "encoded", encoder, frame)
    made = {"store": folder / "store"}
    for kind in kinds:
        model = CTRModel(encoder.layout, plan_of(rows, width, BITS[kind]), ModelConfig(), seed=0)
        save_checkpoint(folder / "checkpoint", model)
        made[kind] = folder / kind
        pack(folder / "checkpoint", folder / "encoded", folder / "frame", schema, made[kind])
        shutil.rmtree(folder / "checkpoint")
    return made


def plan_of(rows: dict[str, int], width: int, bits: int) -> Plan:
    full = full_plan(rows, width)
    tables = {
        name: replace(table, blocks=tuple(replace(block, bits=bits) for block in table.blocks))
        for name, table in full.tables.items()
    }
    return Plan(width=width, tables=tables)


def write_frame(folder: Path, schema: Schema, rows: dict[str, int]) -> pd.DataFrame:
    """Events drawn by the tables' frequencies; writes `store` and `frame`, and returns the frame."""
    rng = np.random.default_rng(0)
    drawn = {name: [token(name, i) for i in draw_ids(rng, count, ROWS, "power")] for name, count in rows.items()}
    raw = folder / "raw"
    raw.mkdir()
    pd.DataFrame({"click": rng.integers(0, 2, ROWS), **drawn}).to_parquet(raw / "events.parquet")
    ingest(raw, schema, folder / "dataset")
    build_features(folder / "dataset", schema, 0, folder / "frame", folder / "store")
    return pd.read_parquet(folder / "frame" / "frame.parquet")


def token(name: str, number: int) -> str:
    """An id as logs have them: the field's letter and eight digits."""
    return f"{name}_{number:08d}"


def make_encoder(schema: Schema, rows: dict[str, int]) -> Encoder:
    """As fitting makes it: row 0 out-of-vocabulary, counts that fall as 1/i."""
    tables = {}
    for name, count in rows.items():
        values = pa.array([None, *(token(name, i) for i in range(count - 1))], pa.string())
        counts = np.concatenate([[0], np.maximum(1e8 / np.arange(1, count), 1)]).astype(np.int64)
        tables[name] = pa.table({"value": values, "count": counts})
    assert layout_of(schema, rows).table_rows == rows
    return Encoder(schema, tables, {})


def write_encoded(folder: Path, encoder: Encoder, frame: pd.DataFrame) -> None:
    encoder.save(folder / "encoder")
    write_json(folder / "layout.json", asdict(encoder.layout))
    for split in SPLITS:
        part = frame[frame["split"] == split]
        batch = encoder.transform({name: part[name] for name in encoder.layout.categorical})
        (folder / split).mkdir()
        arrays = {"ids": batch.ids_BF, "dense": batch.dense_BN, "label": part["label"].to_numpy(np.uint8)}
        arrays |= {"row_id": part["row_id"].to_numpy(), "time": np.zeros(len(part), np.int64)}
        for stem, array in {**arrays, "group": np.zeros(len(part), np.int32)}.items():
            np.save(folder / split / f"{stem}.npy", array)


def account(pid: int) -> dict[str, int]:
    """`rss`, `pss` and `peak` of a process, in bytes, from /proc."""
    found = {}
    for file, names in (("smaps_rollup", {"Rss": "rss", "Pss": "pss"}), ("status", {"VmHWM": "peak"})):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            key = line.partition(":")[0]
            if key in names:
                found[names[key]] = int(line.split()[1]) * 1024
    return found


def measure(model: Path, store: Path, frame: Path, requests: int) -> dict[str, float]:
    """Seconds until a new server answered, and its account before and after `requests` requests."""
    rows = pd.read_parquet(frame / "frame.parquet").sample(CANDIDATES, random_state=0)
    names = [f"f{i}" for i in range(NUM_FIELDS)]
    tensors = [{"name": n, "shape": [CANDIDATES], "datatype": "BYTES", "data": rows[n].tolist()} for n in names]
    body = json.dumps({"inputs": tensors}).encode()
    log = model.parent / f"{model.name}.log"
    started = time.perf_counter()
    server = process.start(model, store, log, outlive=False)
    try:
        seconds = time.perf_counter() - started
        first = account(server.pid)
        path = f"/v2/models/{server.name}/infer"
        sent = request_bytes("POST", server.url, path, body, {"Content-Type": "application/json"})

        async def ask() -> list[Answer]:
            send = HttpSender(server.url, lambda index: sent)
            answers = [await send(i) for i in range(requests)]
            await send.close()
            return answers

        failed = [answer for answer in run(ask()) if answer.status != 200]
        if failed:
            raise NarrowcastError(f"the server answered {failed[0].status}: {failed[0].body[:200]!r}; see {log}")
        return {"seconds": seconds, **{f"first_{k}": v for k, v in first.items()}, **account(server.pid)}
    finally:
        process.stop(server.pid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ids", type=int, default=5_000_000, help="of all tables together")
    parser.add_argument("--width", type=int, default=16, help="of the tables")
    parser.add_argument("--kinds", nargs="+", choices=tuple(BITS), default=list(BITS))
    parser.add_argument("--requests", type=int, default=50, help="answered before memory is read")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind, by turns; the medians count")
    parser.add_argument("--out", type=Path, default=Path("memory.json"), help="JSON to write")
    options = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise NarrowcastError("memory is read from /proc/PID/smaps_rollup, which this system lacks: run it on Linux")
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, console.status("making models") as status:
        few, many = Path(scratch) / "few", Path(scratch) / "many"
        few.mkdir()
        many.mkdir()
        models = {"none": write_models(few, FEW_IDS, options.width, ["float32"])["float32"]}
        made = write_models(many, options.ids, options.width, options.kinds)
        models |= {kind: made[kind] for kind in options.kinds}
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in models}
        for repeat in range(options.repeats):
            for kind, model in models.items():
                status.update(f"{kind}, {repeat + 1} of {options.repeats}")
                found[kind].append(measure(model, model.parent / "store", model.parent / "frame", options.requests))
        stored = {kind: sum(p.stat().st_size for p in model.glob("*.safetensors")) for kind, model in models.items()}
        names = sum(len(token(f"f{i}", 0)) * rows for i, rows in enumerate(table_rows(options.ids, NUM_FIELDS)))
    result = {
        kind: {
            **{key: float(np.median([run[key] for run in runs])) for key in runs[0]},
            "stored_bytes": stored[kind],
            "runs": runs,
        }
        for kind, runs in found.items()
    }
    console.print(_table(result, options.ids, names))
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    write_json(options.out, {"machine": machine(), "settings": settings, "vocabulary_bytes": names, "kinds": result})


def _table(result: dict[str, dict[str, Any]], num_ids: int, names: int) -> Table:
    title = f"MB; {num_ids:,} ids, whose text is {names / 1e6:.0f} MB"
    table = Table("tables", "stored", "RSS", "PSS", "peak", "RSS less none", "start, s", title=title)
    for kind, row in result.items():
        more = "" if kind == "none" else f"{(row['rss'] - result['none']['rss']) / 1e6:.0f}"
        sizes = [f"{row[key] / 1e6:.0f}" for key in ("stored_bytes", "rss", "pss", "peak")]
        table.add_row(kind, *sizes, more, f"{row['seconds']:.1f}")
    return table


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
