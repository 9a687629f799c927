"""The server with another scorer behind it: `python -m load.scored_by SCORER [--onnx DIR] -- SERVER'S OPTIONS`.

Everything but the scoring is the server's own, so what differs between two of them is the scorer.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrowcast.components.compact.onnx_model import OnnxModel
from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import Batch
from narrowcast.components.serve import server, versions
from narrowcast.components.serve.amortised import Ranker

SCORERS = ("amortised", "one-by-one", "onnx-one-by-one", "onnx-amortised")


class Scores(Protocol):
    def batch_scores(self, batch: Batch) -> NDArray[np.float32]: ...


class Plain:
    """Takes `Ranker`'s place: each request scored as one batch by `model`, after `prepare`; nothing is kept."""

    hits = misses = cached_bytes = 0

    def __init__(self, model: Scores, prepare: Callable[[Batch], Batch]) -> None:
        self.model = model
        self.prepare = prepare

    def score(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        return [self.model.batch_scores(self.prepare(batch)) for batch in batches]


def repeated(batch: Batch) -> Batch:
    """Every candidate with its own copy of the sequences, each of which is read anew."""
    sequences = {
        name: np.repeat(ids_BL, len(batch), axis=0) if len(ids_BL) == 1 else ids_BL
        for name, ids_BL in batch.sequences.items()
    }
    return Batch(ids_BF=batch.ids_BF, dense_BN=batch.dense_BN, sequences=sequences)


def make_ranker(scorer: str, onnx: Path | None, threads: int, packed: PackedModel, **settings: Any) -> Any:
    if scorer == "amortised":
        return Ranker(packed, **settings)
    model = OnnxModel.load(onnx, threads) if scorer.startswith("onnx") and onnx else packed
    return Plain(model, repeated if scorer.endswith("one-by-one") else lambda batch: batch)


def main() -> int:
    own, others = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("scorer", choices=SCORERS)
    parser.add_argument("--onnx", type=Path, help="exported model")
    parser.add_argument("--threads", type=int, required=True, help="of the scorer")
    options = parser.parse_args(own)
    versions.Ranker = partial(make_ranker, options.scorer, options.onnx, options.threads)  # type: ignore[misc,assignment]
    return server.main([*others, "--threads", str(options.threads)])


if __name__ == "__main__":
    sys.exit(main())
