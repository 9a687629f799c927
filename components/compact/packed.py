"""The packed model: a directory that holds all that a server needs to score, and the object that reads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from narrowcast.components.compact.lookup import PackedLookup
from narrowcast.components.data.encoded import Batch, Layout
from narrowcast.components.data.encoder import Encoder
from narrowcast.components.data.schema import Schema
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.model import to_tensors
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.scorer import Scorer, seeded_scorer
from narrowcast.errors import NarrowcastError
from narrowcast.records import RECORD, digest, read_json

FORMAT = 2
MANIFEST = "manifest.json"


class PackedNetwork(nn.Module):
    """Packed tables and the trained scorer; gives what `CTRModel` does, bit for bit where nothing is lossy."""

    def __init__(self, layout: Layout, plan: Plan, scorer: Scorer, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.lookup = PackedLookup(layout, plan, tensors)
        self.scorer = scorer

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B. `sequences` by field, each B x L, or 1 x L for all rows."""
        return self.scorer(self.lookup(ids_BF, sequences), dense_BN)


class PackedModel:
    """Scores raw feature values: the encoder, then the network."""

    def __init__(self, directory: Path) -> None:
        self.schema = Schema.load(directory / "schema.yaml")
        self.plan = Plan.load(directory / "plan.json")
        self.encoder = Encoder.load(directory / "encoder")
        layout = Layout.from_json(read_json(directory / "layout.json"))
        config = ModelConfig.from_json(read_json(directory / "model.json"), f"{directory}/model.json")
        scorer = seeded_scorer(layout, self.plan.width, config, seed=0)
        scorer.load_state_dict(load_file(directory / "weights.safetensors"))
        tables = load_file(directory / "tables.safetensors")
        self.network = PackedNetwork(layout, self.plan, scorer, tables).eval()

    @classmethod
    def load(cls, directory: str | Path) -> "PackedModel":
        """Read a packed model. Raises NarrowcastError when a file is missing or not what the manifest says."""
        directory = Path(directory)
        manifest = read_manifest(directory)
        extra = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}
        extra -= {*manifest["md5"], MANIFEST, RECORD}
        if extra:
            raise NarrowcastError(
                f"the packed model {directory} holds '{min(extra)}', which its manifest does not list: remove it or "
                "run the compact step again"
            )
        for name, md5 in manifest["md5"].items():
            if not (directory / name).is_file():
                raise NarrowcastError(f"the packed model {directory} lacks '{name}': run the compact step again")
            if digest(directory / name) != md5:
                raise NarrowcastError(
                    f"'{name}' of the packed model {directory} is not the file that was packed (its md5 differs from "
                    "manifest.json): copy it again or run the compact step again"
                )
        try:
            return cls(directory)
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise NarrowcastError(
                f"the packed model {directory} was not written by this version ({' '.join(str(error).split())}): "
                "run the compact step again"
            ) from None

    def score(self, columns: Mapping[str, Sequence[Any] | pd.Series]) -> NDArray[np.float32]:
        """Click probabilities (M, float32) of M rows given as every input of the schema by name."""
        return self.batch_scores(self.encoder.transform(columns))

    @torch.no_grad()
    def batch_scores(self, batch: Batch) -> NDArray[np.float32]:
        """Click probabilities (B, float32) of encoded rows."""
        return torch.sigmoid(self.network(*to_tensors(batch))).numpy()


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """`manifest.json`, checked for its own format and content. Raises NarrowcastError."""
    manifest = read_json(Path(directory) / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("md5"), dict):
        raise NarrowcastError(
            f"{directory} is no packed model of format {FORMAT}: run the compact step of this version"
        )
    return manifest
