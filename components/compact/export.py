"""A packed model to ONNX: one graph with its tables quantised inside, and beside it all that a consumer needs.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length, S rows of a sequence input.
"""

import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from narrowcast import __version__
from narrowcast.components.compact.graph import GraphNetwork
from narrowcast.components.compact.graph_file import OPSET, require_onnx, write_graph
from narrowcast.components.compact.onnx_model import (
    DENSE,
    FORMAT,
    GRAPH,
    IDS,
    MANIFEST,
    PROBABILITY,
    OnnxModel,
    sequence_input,
)
from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import PAD, Batch, Layout
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json, write_json, writing_directory

BOUND = 1e-6
"""Largest difference in probability from the packed model: both hold the same integers, sums differ in their order."""
LARGEST = 1e-4
"""A difference beyond which no order of sums can be the reason, so that the export is refused; our choice."""
CHECKED = ((1, 1), (64, 1), (64, 64))
"""Rows and histories of the random batches that the graph is checked on."""


def export(packed: str | Path, target: str | Path, say: Callable[[str], object] = str) -> dict[str, Any]:
    """Write the packed model in the directory `packed` to the directory `target`; docs/export.md says what it holds.

    `say` is told what is being done. Returns the manifest. Raises NarrowcastError when `packed` is no packed model,
    when `target` is something else than an exported model, when the libraries of the extra `onnx` are not installed,
    and when the graph does not score like the packed model.
    """
    packed, target = Path(packed), Path(target)
    require_onnx()
    if target.exists() and not (target / GRAPH).is_file():
        raise NarrowcastError(f"{target} exists and is no exported model: give a folder that does not exist yet")
    model = PackedModel.load(packed)
    with writing_directory(target) as folder:
        say("tracing the graph")
        tensors = load_file(packed / "tables.safetensors")
        write_graph(GraphNetwork(model.encoder.layout, model.plan, model.network.scorer, tensors), folder / GRAPH)
        for name in ("schema.yaml", "layout.json", "plan.json", "sample_request.json"):
            shutil.copy(packed / name, folder)
        shutil.copytree(packed / "encoder", folder / "encoder")
        say("scoring with ONNX Runtime beside the packed model")
        parity = measure_parity(model, OnnxModel(folder))
        made = manifest(model, parity, packed, folder)
        write_json(folder / MANIFEST, made)
    return made


def measure_parity(model: PackedModel, exported: OnnxModel) -> dict[str, float]:
    """Largest absolute difference in probability from the packed model on random batches, its bound, and their rows.

    The bound is 1e-6, or twice what was measured where that is more (our choice, as for the packed model).
    """
    rng = np.random.default_rng(0)
    layout = model.encoder.layout
    lengths = {name: model.schema.field(name).max_length for name in layout.sequences}
    batches = [random_batch(layout, lengths, *sizes, rng) for sizes in CHECKED]
    difference = max(float(np.abs(model.batch_scores(batch) - exported.batch_scores(batch)).max()) for batch in batches)
    if not difference <= LARGEST:
        raise NarrowcastError(
            f"the exported graph's probabilities differ by {difference:g} from the packed model's, which is a defect: "
            "please report it with the plan and the versions of torch and onnxruntime"
        )
    return {"max_difference": difference, "bound": max(BOUND, 2 * difference), "rows": sum(map(len, batches))}


def random_batch(
    layout: Layout, lengths: Mapping[str, int], num_rows: int, num_histories: int, rng: np.random.Generator
) -> Batch:
    """Any ids, unknown ones among them; sequences of up to `lengths` by field, the first empty and the last full."""

    def ids(table: str, *shape: int) -> np.ndarray:
        return rng.integers(0, layout.table_rows[table] + 3, shape, dtype=np.int32)

    sequences = {}
    for name in layout.sequences:
        max_length = lengths[name]
        length_S = rng.integers(0, max_length + 1, num_histories)
        length_S[0], length_S[-1] = 0, max_length
        padding_SL = np.arange(max_length) >= length_S[:, None]
        sequences[name] = np.where(padding_SL, PAD, ids(layout.table_of[name], num_histories, max_length))
    columns = [ids(layout.table_of[name], num_rows) for name in layout.categorical]
    return Batch(
        ids_BF=np.stack(columns, axis=1) if columns else np.empty((num_rows, 0), np.int32),
        dense_BN=rng.standard_normal((num_rows, len(layout.numeric)), dtype=np.float32),
        sequences=sequences,
    )


def manifest(model: PackedModel, parity: dict[str, float], packed: Path, folder: Path) -> dict[str, Any]:
    layout = model.encoder.layout
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    inputs: list[dict[str, Any]] = [
        {"name": IDS, "datatype": "INT64", "shape": ["B", len(layout.categorical)], "columns": layout.categorical},
        {"name": DENSE, "datatype": "FP32", "shape": ["B", len(layout.numeric)], "columns": layout.numeric},
    ]
    for name in layout.sequences:
        inputs.append({"name": sequence_input(name), "datatype": "INT64", "shape": ["1 or B", "L"], "padding": PAD})
    return {
        "format": FORMAT,
        "schema": model.schema.name,
        "schema_hash": model.schema.hash,
        "packed_md5": digest(packed),
        "opset": {"ai.onnx": OPSET},
        "inputs": inputs,
        "outputs": [{"name": PROBABILITY, "datatype": "FP32", "shape": ["B"]}],
        "table_bytes": model.plan.stored_bytes(),
        "graph_bytes": sum(file.stat().st_size for file in folder.glob(f"{GRAPH}*")),
        "parity": parity,
        "md5": {file.relative_to(folder).as_posix(): digest(file) for file in files},
        "versions": {"narrowcast": __version__, **{name: version(name) for name in ("onnx", "onnxruntime", "torch")}},
    }


def snippet(directory: str | Path) -> str:
    """Python that scores three rows of unknown ids with an exported model, by NumPy and ONNX Runtime alone."""
    columns = {entry["name"]: entry["shape"][1] for entry in read_json(Path(directory) / MANIFEST)["inputs"]}
    feeds = [
        f'"{IDS}": np.zeros((3, {columns[IDS]}), np.int64)',
        f'"{DENSE}": np.zeros((3, {columns[DENSE]}), np.float32)',
    ]
    feeds += [f'"{name}": np.full((1, 4), {PAD}, np.int64)' for name in columns if name not in (IDS, DENSE)]
    return "\n".join(
        [
            "import numpy as np",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{Path(directory) / GRAPH}")',
            f"feeds = {{{', '.join(feeds)}}}",
            f'print(session.run(["{PROBABILITY}"], feeds)[0])',
        ]
    )
