"""The compaction step: a retrained checkpoint becomes a packed model whose tables weigh what the plan said."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import save_file

from narrowcast import __version__
from narrowcast.components.compact.packed import FORMAT, MANIFEST, PackedModel
from narrowcast.components.compact.packed_table import table_tensors
from narrowcast.components.compact.sample import sample_request
from narrowcast.components.data.encoded import SPLITS, EncodedData
from narrowcast.components.data.schema import Schema
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError
from narrowcast.records import RECORD, StepRecord, digest, write_json, writing_directory

LOSSLESS_BOUND = 1e-6
"""Largest difference in probability between models of equal values: folding and batch size reorder float32 sums."""


def pack(checkpoint: str | Path, encoded: str | Path, frame: str | Path, schema: Schema, target: str | Path) -> None:
    """Write the packed model of `checkpoint` to `target`; see "The packed model" in docs/architecture.md.

    Raises NarrowcastError when the data are not those the checkpoint was trained on, or a value cannot be stored.
    """
    model = load_checkpoint(checkpoint)
    data = EncodedData(encoded)
    if data.layout != model.layout:
        raise NarrowcastError(f"{checkpoint} was trained on other data than {encoded}: train again on this data")
    with writing_directory(target) as folder:
        write_tables(model, folder / "tables.safetensors")
        save_file({k: v.contiguous() for k, v in model.scorer.state_dict().items()}, folder / "weights.safetensors")
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes them for the owner alone; a server may run as another user
        write_json(folder / "model.json", model.config.to_json())
        write_json(folder / "layout.json", asdict(model.layout))
        model.plan.save(folder / "plan.json")
        (folder / "schema.yaml").write_text(schema.to_text())
        shutil.copytree(data.directory / "encoder", folder / "encoder")
        packed = PackedModel(folder)
        parity = measure_parity(model, packed, data)
        write_json(folder / "sample_request.json", sample_request(read_test_rows(frame), schema, packed))
        write_json(folder / MANIFEST, manifest(model, schema, parity, folder))
        num_rows = sum(len(data.split(name)) for name in SPLITS)
        StepRecord(
            step="compact",
            rows_in=num_rows,
            rows_out=num_rows,
            metrics={
                "stored_bytes": model.plan.stored_bytes(),
                "full_bytes": model.plan.full_bytes(),
                "ratio": model.plan.full_bytes() / max(model.plan.stored_bytes(), 1),
                "max_difference": parity["max_difference"],
            },
        ).save(folder)


def read_test_rows(frame: str | Path) -> pd.DataFrame:
    path = Path(frame) / "frame.parquet"
    try:
        return pd.read_parquet(path, filters=[("split", "==", "test")])
    except (OSError, ValueError) as error:
        raise NarrowcastError(f"{path} cannot be read ({error}): run the validate_frame step again") from None


def write_tables(model: CTRModel, path: Path) -> None:
    """Write the packed tables; the file's length less its header equals `plan.stored_bytes()`."""
    tensors = {
        f"{name}.{key}": tensor
        for name, table in model.embedding.tables.items()
        for key, tensor in table_tensors(table).items()
    }
    save_file(tensors, path)
    written = data_bytes(path)
    if written != model.plan.stored_bytes():
        raise NarrowcastError(
            f"the packed tables weigh {written} bytes where the plan says {model.plan.stored_bytes()}: the plan's "
            "account is wrong, which is a defect; please report it with the plan"
        )


def data_bytes(path: Path) -> int:
    """Bytes of a safetensors file after its header, whose length its first 8 bytes give."""
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    return path.stat().st_size - 8 - header


def measure_parity(model: CTRModel, packed: PackedModel, data: EncodedData) -> dict[str, float]:
    """Largest absolute difference in probability between trained and packed model on the test rows, and its bound.

    The bound of a lossy model is twice what is measured: our choice, for rows the test split does not hold.
    """
    test = data.split("test")
    difference = float(np.abs(predict(model, test) - predict(packed.network, test)).max(initial=0.0))
    lossy = any(table.is_lossy for table in model.plan.tables.values())
    bound = max(2 * difference, LOSSLESS_BOUND) if lossy else LOSSLESS_BOUND
    return {"max_difference": difference, "bound": bound}


def manifest(model: CTRModel, schema: Schema, parity: dict[str, float], folder: Path) -> dict[str, Any]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (RECORD, MANIFEST))
    return {
        "format": FORMAT,
        "schema": schema.name,
        "schema_hash": schema.hash,
        "feature_service": schema.feature_service,
        "plan_bytes": model.plan.stored_bytes(),
        "full_bytes": model.plan.full_bytes(),
        "parity": parity,
        "md5": {file.relative_to(folder).as_posix(): digest(file) for file in files},
        "versions": {
            "narrowcast": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "safetensors", "torch")},
        },
    }
