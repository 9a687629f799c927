"""What the three libraries' runners share: their options, the encoded arrays, and the answer they print.

Needs numpy alone, so that it runs in the peers' environment as well as in narrowcast's.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Encoded data as narrowcast writes it, of categorical fields alone; row 0 of every table is out-of-vocabulary."""

    folder: Path
    fields: list[str]
    rows: list[int]  # of every field's table

    def ids(self, split: str) -> np.ndarray:
        """int32, B x F."""
        return np.load(self.folder / split / "ids.npy", mmap_mode="r")

    def labels(self, split: str) -> np.ndarray:
        """uint8, B."""
        return np.load(self.folder / split / "label.npy", mmap_mode="r")


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("encoded", type=Path, help="folder that narrowcast's encode step wrote")
    parser.add_argument("--scores", type=Path, help="folder to write validation.npy and test.npy to: probabilities")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400])
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3, help="the epoch best on validation counts")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--l2", type=float, default=0.0, help="penalty on embeddings, in the library's own scale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def read(folder: Path) -> Encoded:
    layout = json.loads((folder / "layout.json").read_text())
    if layout["numeric"] or layout["sequences"]:
        raise SystemExit("the libraries treat numbers and sequences differently: give categorical fields alone")
    rows = [layout["table_rows"][layout["table_of"][field]] for field in layout["categorical"]]
    return Encoded(folder=folder, fields=layout["categorical"], rows=rows)


def answer(
    chosen: argparse.Namespace, library: str, version: str, epoch_seconds: list[float], scores: dict[str, np.ndarray]
) -> None:
    """Print what was measured as a line of JSON, and write `scores`, by split, where they are wanted.

    `epoch_seconds`: training alone, without preparing data, evaluating and saving.
    """
    if chosen.scores:
        chosen.scores.mkdir(parents=True, exist_ok=True)
        for split, probability_B in scores.items():
            np.save(chosen.scores / f"{split}.npy", np.asarray(probability_B, np.float64).reshape(-1))
    rows = len(read(chosen.encoded).labels("train"))
    print(json.dumps({"library": library, "version": version, "rows": rows, "epoch_seconds": epoch_seconds}))
