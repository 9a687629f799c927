"""The exported graph in ONNX Runtime: its lookup beside the block-quantised gather, itself beside the packed model.

    python benchmarks/export.py --rows 1000000 --width 16 --ids 106496 --history 100 --candidates 500

Lookup: random rows of one table, by the standard operators that the export writes for 8 and 4 bits, by ONNX Runtime's
GatherBlockQuantized on the same integers (its scales are float32, one a row), and as float32 rows. Session: one user's
candidates with a history, by the graph and by the packed model and its ranker, the same int8 model of random values.
All by turns in one process, medians of wall clock; `file bytes` are the graph's with its table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from amortised import LAYOUT, TABLES, Packed, by_turns, request
from onnx import TensorProto, helper, numpy_helper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from narrowcast.components.compact.graph import GraphNetwork
from narrowcast.components.compact.graph_file import OPSET, to_onnx, write_graph
from narrowcast.components.compact.graph_table import GraphTable
from narrowcast.components.compact.onnx_model import feeds, new_session
from narrowcast.components.compact.packed import PackedNetwork
from narrowcast.components.compact.packed_table import table_tensors
from narrowcast.components.serve.amortised import Ranker
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.histories import histories
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan
from narrowcast.components.train.quantise import float_scale, quantise
from narrowcast.records import write_json

SMALLEST_BLOCK = 16
"""Columns that share a scale in GatherBlockQuantized, at least; a power of 2."""


def table_plan(rows: int, width: int, bits: int) -> TablePlan:
    return TablePlan(rows=rows, blocks=(Block(start=0, stop=rows, columns=tuple(range(width)), bits=bits),))


def standard(values_Rw: torch.Tensor, bits: int, path: Path) -> None:
    """The lookup that the export writes."""
    rows, width = values_Rw.shape
    tensors = {"0.values": values_Rw}
    if bits < 16:
        tensors["0.values"], tensors["0.scale"] = quantise(values_Rw, bits)
    table = GraphTable(table_plan(rows, width, bits), width, tensors)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    onnx_ir.save(to_onnx(table, (torch.zeros(3).long(),), sizes, ["ids"], ["rows"]), path)


def block_quantised(values_Rw: torch.Tensor, bits: int, path: Path) -> None:
    """One node, on the same integers."""
    stored_Rb, scale_R = quantise(values_Rw, bits)
    width = values_Rw.shape[1]
    node = helper.make_node(
        "GatherBlockQuantized",
        ["values", "ids", "scales"],
        ["rows"],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=max(SMALLEST_BLOCK, 1 << (width - 1).bit_length()),
        bits=bits,
    )
    stored = {"values": stored_Rb.numpy(), "scales": float_scale(scale_R).unsqueeze(1).numpy()}
    graph = helper.make_graph(
        [node],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def lookups(chosen: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    values_Rw = torch.randn(chosen.rows, chosen.width, generator=torch.Generator().manual_seed(0))
    standard(values_Rw, 32, folder / "float32")
    for bits in (8, 4):
        standard(values_Rw, bits, folder / f"int{bits}, standard operators")
        block_quantised(values_Rw, bits, folder / f"int{bits}, GatherBlockQuantized")
    sessions = {path.name: new_session(path, chosen.threads) for path in sorted(folder.iterdir())}
    ids = {"ids": np.random.default_rng(0).integers(0, chosen.rows, chosen.ids)}
    for bits in (8, 4):
        one, other = (next(s for n, s in sessions.items() if n.startswith(f"int{bits}, {k}")) for k in ("st", "Ga"))
        assert np.array_equal(one.run(None, ids)[0], other.run(None, ids)[0])
    ms = by_turns({name: lambda s=session: s.run(None, ids) for name, session in sessions.items()}, chosen.rounds)
    return {
        name: {"ms": value, "ratio": value / ms["float32"], "file_bytes": (folder / name).stat().st_size}
        for name, value in ms.items()
    }


def sessions(chosen: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    plan = Plan(width=chosen.width, tables={n: table_plan(rows, chosen.width, 8) for n, rows in TABLES.items()})
    config = ModelConfig(backbone=chosen.backbone, history=chosen.encoder, init_std=0.1)
    model = CTRModel(LAYOUT, plan, config, seed=0).eval()
    tensors = {f"{n}.{k}": v for n, table in model.embedding.tables.items() for k, v in table_tensors(table).items()}
    network = PackedNetwork(LAYOUT, plan, model.scorer, tensors).eval()
    write_graph(GraphNetwork(LAYOUT, plan, model.scorer, tensors), folder / "model.onnx")
    session = new_session(folder / "model.onnx", chosen.threads)
    batch = request(chosen.history, chosen.candidates)
    inputs = feeds(batch)
    ranker = Ranker(Packed(network=network), cache_bytes=0)

    @torch.inference_mode()
    def packed() -> np.ndarray:
        return network(*to_tensors(batch)).sigmoid().numpy()

    difference = float(np.abs(session.run(None, inputs)[0] - packed()).max())
    ways = {
        "packed model": packed,
        "ranker, no history kept": lambda: ranker.score([batch]),
        "ONNX Runtime": lambda: session.run(None, inputs),
    }
    ms = by_turns(ways, chosen.rounds)
    return {name: {"ms": v, "ratio": v / ms["packed model"], "difference": difference} for name, v in ms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table that is looked up")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--ids", type=int, default=26 * 4096, help="rows looked up at a time")
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--encoder", choices=histories(), default="append")
    parser.add_argument("--history", type=int, default=100, help="items of the user's history")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    figures: dict[str, Any] = {}
    for title, measure in (("lookup", lookups), ("session", sessions)):
        with tempfile.TemporaryDirectory() as folder:
            figures[title] = measure(chosen, Path(folder))
        names = list(next(iter(figures[title].values())))
        table = Table(title, *(name.replace("_", " ") for name in names), box=SIMPLE_HEAD)
        for way, values in figures[title].items():
            table.add_row(way, *(f"{values[n]:,}" if isinstance(values[n], int) else f"{values[n]:.3g}" for n in names))
        Console().print(table)
    if chosen.out:
        write_json(chosen.out, {"settings": {k: str(v) for k, v in vars(chosen).items()}, **figures})


if __name__ == "__main__":
    main()
