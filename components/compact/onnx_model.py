"""An exported model, read back: its encoder and an ONNX Runtime session. Needs no torch.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from narrowcast.components.data.encoded import Batch
from narrowcast.components.data.encoder import Encoder
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json

FORMAT = 1
GRAPH = "model.onnx"
MANIFEST = "manifest.json"
IDS, DENSE, PROBABILITY = "ids", "dense", "probability"


def sequence_input(field: str) -> str:
    """Name of a sequence field's input; the prefix keeps a field named `ids` from clashing with the ids."""
    return f"sequence_{field}"


class OnnxModel:
    """Scores raw feature values: the encoder, then the graph in ONNX Runtime."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        self.encoder = Encoder.load(directory / "encoder")
        self.session = new_session(directory / GRAPH, threads)

    @classmethod
    def load(cls, directory: str | Path, threads: int | None = None) -> "OnnxModel":
        """Read what `narrowcast export` wrote; `threads` of ONNX Runtime, by default one a core.

        Raises NarrowcastError when a file is missing or not what the manifest says.
        """
        directory = Path(directory)
        manifest = read_json(directory / MANIFEST)
        md5s = manifest.get("md5") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
        if not isinstance(md5s, dict) or GRAPH not in md5s:
            raise NarrowcastError(f"{directory} is no exported model of format {FORMAT}: run narrowcast export")
        for name, md5 in md5s.items():
            if not (directory / name).is_file() or digest(directory / name) != md5:
                raise NarrowcastError(
                    f"'{name}' of the exported model {directory} is missing or not the file that was exported: copy it "
                    "again or run narrowcast export"
                )
        return cls(directory, threads)

    def score(self, columns: Mapping[str, Sequence[Any] | pd.Series]) -> NDArray[np.float32]:
        """Click probabilities (B, float32) of B rows given as every input of the schema by name."""
        return self.batch_scores(self.encoder.transform(columns))

    def batch_scores(self, batch: Batch) -> NDArray[np.float32]:
        """Click probabilities (B, float32) of encoded rows; a sequence of one row, 1 x L, stands for all."""
        probability_B: NDArray[np.float32] = self.session.run([PROBABILITY], feeds(batch))[0]
        return probability_B


def new_session(path: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU. Raises NarrowcastError where ONNX Runtime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise NarrowcastError(
            "ONNX Runtime is not installed: install narrowcast with its extra, pip install 'narrowcast[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(batch: Batch) -> dict[str, NDArray[Any]]:
    """A batch as the graph's inputs by name."""
    sequences = {sequence_input(name): ids_BL.astype(np.int64) for name, ids_BL in batch.sequences.items()}
    return {IDS: batch.ids_BF.astype(np.int64), DENSE: batch.dense_BN, **sequences}
