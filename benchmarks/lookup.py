"""Looking up packed tables: the kernels that could do it, beside torch's float32 embedding bag on the same ids.

    python benchmarks/lookup.py --rows 100000 1000000 --widths 16 32 64

4,096 x 26 ids, a table a field, every table as large; the result is float32 rows in the order of the ids. Ways take
turns, in an order drawn anew each time. In its turn a way looks up two batches, none that was just looked up, and the
second is timed, so that what others left running does not count; ONNX Runtime's threads do not spin after a call, as
they would still do so after two of the next way's. Figures are medians: of the milliseconds, and of the ratios to the
bag in the same turn. The bag reads all tables as one, with the tables' first rows already added to its ids, which
nothing else is spared. Bytes are those of a row in memory, scales included. The floor is what must move at least (the
distinct rows, ids, the result) at the bandwidth of a copy; the operations are a subtraction and a multiplication a
value. FBGEMM's table-batched embedding is measured where `--fbgemm` says in which site-packages it is.

    python benchmarks/lookup.py --load 5000000

measures instead, in fresh processes, how long it takes to compile the kernel (once, then kept on disk), to load a
packed model's tables of so many ids, and the memory that they take.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from libraries import machine, settings
from onnx import TensorProto, helper
from options import markdown
from rich.console import Console
from safetensors.torch import load_file, save_file
from synthetic import draw_ids, table_rows
from torch import Tensor
from torch.nn.functional import embedding_bag

from narrowcast.components.compact.lookup import PackedLookup, aligned
from narrowcast.components.compact.packed_table import PackedTable
from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.embedding import look_up
from narrowcast.components.train.plan import Block, Plan, TablePlan, row_bytes
from narrowcast.records import write_json

NUM_FIELDS = 26
NUM_BATCHES = 12
BAG = "torch float32 embedding bag"
OURS = "narrowcast"
CODES = {"power": "about 1/i", "uniform": "uniform"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ids:
    """A batch: ids B x F (int32), and one after the other for tables that lie in one (int64, int32)."""

    ids_BF: Tensor
    fused_n: Tensor
    fused_narrow_n: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """Something that looks a batch up."""

    name: str
    bytes_per_row: float
    look_up: Callable[[Ids], Any]


def uniform_plan(rows: list[int], width: int, bits: int) -> tuple[Layout, Plan]:
    """A field a table, each of one block of whole rows."""
    names = [f"f{i}" for i in range(len(rows))]
    layout = Layout(
        categorical=tuple(names),
        numeric=(),
        sequences=(),
        table_of={name: name for name in names},
        table_rows=dict(zip(names, rows, strict=True)),
    )
    columns = tuple(range(width))
    tables = {
        name: TablePlan(rows=count, blocks=(Block(start=0, stop=count, columns=columns, bits=bits),))
        for name, count in layout.table_rows.items()
    }
    return layout, Plan(width=width, tables=tables)


def random_tensors(layout: Layout, width: int, bits: int) -> dict[str, Tensor]:
    """Stored tables of random integers and scales."""
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for name, rows in layout.table_rows.items():
        if bits == 32:
            tensors[f"{name}.0.values"] = torch.randn(rows, width, generator=generator)
            continue
        shape = (rows, width * bits // 8)
        tensors[f"{name}.0.values"] = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
        if bits == 8:
            tensors[f"{name}.0.scale"] = torch.rand(rows, generator=generator).half()
        else:
            tensors[f"{name}.0.scale"] = torch.randint(1, 200, (rows,), generator=generator, dtype=torch.uint8)
    return tensors


def ways_of(bits: int, rows: int, width: int, fbgemm: Path | None) -> Iterator[Way]:
    """All ways to look up tables of `bits`."""
    layout, plan = uniform_plan([rows] * NUM_FIELDS, width, bits)
    tensors = random_tensors(layout, width, bits)
    packed = PackedLookup(layout, plan, tensors)
    total = rows * NUM_FIELDS
    yield Way(name=OURS, bytes_per_row=packed.held_bytes / total, look_up=lambda b: packed(b.ids_BF, {}))
    if bits == 32:
        pages = torch.from_numpy(aligned(4 * total * width)).view(torch.float32).view(total, width)
        pages.copy_(torch.cat(list(tensors.values())))
        yield Way(
            name=f"{BAG}, huge pages",
            bytes_per_row=4 * width,
            look_up=lambda b: embedding_bag(b.fused_n.unsqueeze(1), pages, mode="sum"),
        )
        return
    tables = {
        name: PackedTable(plan.table(name), width, {key: tensors[f"{name}.{key}"] for key in ("0.values", "0.scale")})
        for name in layout.table_rows
    }
    yield Way(
        name="torch index_select, then dequantised",
        bytes_per_row=row_bytes(width, bits),
        look_up=lambda b: look_up(layout, tables, b.ids_BF, {}),
    )
    yield torch_quantised(bits, total, width)
    if bits in (8, 4) and width >= 16:
        yield gather_block_quantised(bits, total, width)
    if fbgemm:
        yield table_batched(bits, rows, width, fbgemm)


def torch_quantised(bits: int, total: int, width: int) -> Way:
    """torch.ops.quantized's bag; a row is its integers, scale and offset (float32 for 8 bits, else float16)."""
    name = "byte" if bits == 8 else f"{bits}bit"
    operator = getattr(torch.ops.quantized, f"embedding_bag_{name}_rowwise_offsets")
    stored = width * bits // 8 + (8 if bits == 8 else 4)
    weight = torch.randint(0, 60, (total, stored), dtype=torch.uint8)
    offsets = torch.arange(0)

    def run(batch: Ids) -> Tensor:
        nonlocal offsets
        if len(offsets) != len(batch.fused_n):
            offsets = torch.arange(len(batch.fused_n))
        return operator(weight, batch.fused_n, offsets)

    return Way(name="torch quantised embedding bag", bytes_per_row=stored, look_up=run)


def gather_block_quantised(bits: int, total: int, width: int) -> Way:
    """ONNX Runtime's GatherBlockQuantized with one block a row and its float32 scale."""
    stored = width * bits // 8
    inputs = [
        helper.make_tensor_value_info("data", TensorProto.UINT8, [total, stored]),
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["n"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [total, 1]),
    ]
    node = helper.make_node(
        "GatherBlockQuantized",
        ["data", "ids", "scales"],
        ["rows"],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=width,
        bits=bits,
    )
    output = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", width])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = np.random.default_rng(0).integers(0, 256, (total, stored), np.uint8)
    fixed = {"data": data, "scales": np.ones((total, 1), np.float32)}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in fixed.items()}

    def run(batch: Ids) -> Any:
        ids = onnxruntime.OrtValue.ortvalue_from_numpy(batch.fused_narrow_n.numpy())
        return session.run_with_ort_values(["rows"], {**values, "ids": ids})

    return Way(name="ONNX Runtime GatherBlockQuantized", bytes_per_row=stored + 4, look_up=run)


def table_batched(bits: int, rows: int, width: int, site_packages: Path) -> Way:
    """FBGEMM's inference tables on the CPU; a row is its integers, a float16 scale and offset."""
    if str(site_packages) not in sys.path:
        sys.path.append(str(site_packages))
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    kind = {8: SparseType.INT8, 4: SparseType.INT4, 2: SparseType.INT2}[bits]
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(f"f{i}", rows, width, kind, EmbeddingLocation.HOST) for i in range(NUM_FIELDS)],
        device="cpu",
        output_dtype=SparseType.FP32,
        row_alignment=1,
    )
    tables.initialize_weights()
    for weights, _ in tables.split_embedding_weights():
        weights.random_(0, 60)
    stored = sum(weight.numel() + scale.numel() for weight, scale in tables.split_embedding_weights())

    def run(batch: Ids) -> Tensor:
        ids_n = batch.ids_BF.T.flatten()  # it wants table by table
        return tables(ids_n, torch.arange(len(ids_n) + 1, dtype=torch.int32))

    return Way(name="FBGEMM table-batched", bytes_per_row=stored / rows / NUM_FIELDS, look_up=run)


def draw(rng: np.random.Generator, rows: int, batch_size: int, distribution: str) -> Ids:
    ids_BF = torch.tensor(np.stack([draw_ids(rng, rows, batch_size, distribution) for _ in range(NUM_FIELDS)], axis=1))
    fused_n = (ids_BF.long() + torch.arange(NUM_FIELDS) * rows).flatten()
    return Ids(ids_BF=ids_BF, fused_n=fused_n, fused_narrow_n=fused_n.int())


def interleaved(ways: list[Way], batches: list[Ids], turns: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every way in every turn but the first two."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    next_batches = itertools.cycle(batches)
    for _ in range(turns):
        for i in rng.permutation(len(ways)):
            ways[i].look_up(next(next_batches))
            batch = next(next_batches)
            started = clock()
            ways[i].look_up(batch)
            seconds[ways[i].name].append(clock() - started)
    return {name: taken[2:] for name, taken in seconds.items()}


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - started)
    return 2 * 4 * source.numel() / median(taken)


def distinct_rows(batches: list[Ids]) -> float:
    return float(np.mean([len(np.unique(batch.fused_n.numpy())) for batch in batches]))


def compare(options: argparse.Namespace, rows: int, width: int, bandwidth: float) -> list[dict[str, Any]]:
    """Every way's figures for tables of one size."""
    rng = np.random.default_rng(0)
    total = rows * NUM_FIELDS
    weight = torch.randn(total, width)
    bag = Way(
        name=BAG,
        bytes_per_row=4 * width,
        look_up=lambda b: embedding_bag(b.fused_n.unsqueeze(1), weight, mode="sum"),
    )
    batches = {name: [draw(rng, rows, options.batch_size, name) for _ in range(NUM_BATCHES)] for name in CODES}
    distinct = {name: distinct_rows(found) for name, found in batches.items()}
    num_lookups = options.batch_size * NUM_FIELDS
    clock = time.process_time if options.processor_time else time.perf_counter
    results = []
    for bits in options.bits:
        ways = [bag, *ways_of(bits, rows, width, options.fbgemm)]
        for distribution, found in batches.items():
            seconds = interleaved(ways, found, options.turns, clock)
            for way in ways:
                moved = distinct[distribution] * way.bytes_per_row + num_lookups * 4 * (1 + width)
                results.append(
                    {
                        "rows": rows,
                        "width": width,
                        "ids": distribution,
                        "bits": 32 if way is bag else bits,
                        "beside": bits,
                        "way": way.name,
                        "milliseconds": 1e3 * median(seconds[way.name]),
                        "ratio": median(np.divide(seconds[way.name], seconds[BAG]).tolist()),
                        "bytes_per_row": way.bytes_per_row,
                        "times_fewer_bytes": 4 * width / way.bytes_per_row,
                        "floor_milliseconds": 1e3 * moved / bandwidth,
                        "operations": 0 if bits == 32 or way is bag else 2 * num_lookups * width,
                    }
                )
    return results


def table(results: list[dict[str, Any]]) -> str:
    head = ["rows a table", "D", "ids", "bits", "", "ms", "ratio", "bytes a row", "fewer", "floor, ms", "operations"]
    lines = [
        [
            f"{r['rows']:,}",
            str(r["width"]),
            CODES[r["ids"]],
            str(r["bits"]),
            r["way"],
            f"{r['milliseconds']:.2f}",
            f"{r['ratio']:.2f}",
            f"{r['bytes_per_row']:.1f}",
            f"{r['times_fewer_bytes']:.2f}x",
            f"{r['floor_milliseconds']:.2f}",
            f"{r['operations'] / 1e6:.1f}M",
        ]
        for r in results
    ]
    return markdown(head, lines)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def load_tables(path: str, num_ids: int, width: int, bits: int) -> dict[str, float]:
    """In a process of its own: seconds to have the kernel, then to load the tables; bytes resident before and after."""
    tiny, plan = uniform_plan([2] * NUM_FIELDS, width, bits)
    started = time.perf_counter()
    PackedLookup(tiny, plan, random_tensors(tiny, width, bits))
    kernel_seconds = time.perf_counter() - started
    layout, plan = uniform_plan(table_rows(num_ids, NUM_FIELDS), width, bits)
    before = resident_bytes()
    started = time.perf_counter()
    packed = PackedLookup(layout, plan, load_file(path))
    load_seconds = time.perf_counter() - started
    return {
        "kernel_seconds": kernel_seconds,
        "load_seconds": load_seconds,
        "held_bytes": packed.held_bytes,
        "resident_bytes": resident_bytes() - before,
    }


def measure_load(num_ids: int, width: int, bits: int) -> list[dict[str, float]]:
    """The first process compiles the kernel, the second finds it kept."""
    layout, plan = uniform_plan(table_rows(num_ids, NUM_FIELDS), width, bits)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tables.safetensors"
        save_file(random_tensors(layout, width, bits), path)
        os.environ["NUMBA_CACHE_DIR"] = f"{folder}/kernels"
        found = []
        for _ in range(2):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found.append(fresh.submit(load_tables, path, num_ids, width, bits).result())
    return [{"bits": bits, "stored_bytes": plan.stored_bytes(), **result} for result in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="rows of each table")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--bits", type=int, nargs="+", choices=(32, 8, 4, 2), default=[8, 4, 2])
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every way")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure it, with --threads 1, where the machine is not idle"
    )
    parser.add_argument("--fbgemm", type=Path, help="site-packages that have fbgemm_gpu")
    parser.add_argument("--load", type=int, metavar="IDS", help="measure loading tables of so many ids instead")
    parser.add_argument("--out", type=Path, default=Path("lookup.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    found: dict[str, Any] = {"settings": settings(options), "machine": machine()}
    if options.load:
        width = options.widths[0]
        found["load"] = [result for bits in options.bits for result in measure_load(options.load, width, bits)]
        print(json.dumps(found["load"], indent=1))
    else:
        bandwidth = copy_bandwidth()
        found |= {"bytes_per_second": bandwidth, "results": []}
        for rows in options.rows:
            for width in options.widths:
                with console.status(f"{rows:,} rows a table, width {width}"):
                    found["results"] += compare(options, rows, width, bandwidth)
        print(f"{options.threads} threads, a copy moves {bandwidth / 1e9:.1f} GB/s\n")
        print(table(found["results"]))
    write_json(options.out, found)


if __name__ == "__main__":
    main()
