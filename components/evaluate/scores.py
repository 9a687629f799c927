"""The probabilities that the models of a run, and the champion, give the test rows.

Shape letter: B test rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from narrowcast.components.compact.packed import PackedModel
from narrowcast.components.data.encoded import Split
from narrowcast.components.data.schema import Schema
from narrowcast.components.train.checkpoint import load_checkpoint
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError

Scores = NDArray[np.float32]
BATCH = 8192


def sentence(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    return text if isinstance(error, NarrowcastError) else f"{type(error).__name__}: {text}"


class Attempt:
    """What a function of a model returned, or how it failed: a bad model may fail in any way."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._found: Any = None
        self.failure: str | None = None
        try:
            self._found = work()
        except Exception as error:
            self.failure = sentence(error)

    def get(self) -> Any:
        """Raises NarrowcastError with the failure's sentence."""
        if self.failure is not None:
            raise NarrowcastError(self.failure)
        return self._found


def checkpoint_scores(directory: str, test: Split) -> Scores:
    return predict(load_checkpoint(directory), test)


def packed_scores(directory: str, test: Split) -> Scores:
    model = PackedModel.load(directory)
    return np.concatenate([model.batch_scores(batch) for batch, _ in test.batches(BATCH)])


def champion_scores(champion: str, packed: str, rows: pd.DataFrame) -> Scores:
    """The champion's probabilities of the same rows, by its own encoder.

    Raises NarrowcastError, saying why, where there is no champion to compare with.
    """
    if not champion:
        raise NarrowcastError("no champion is deployed, so there is nothing to fall behind")
    if not Path(champion).is_dir():
        raise NarrowcastError(f"the champion's folder {champion} is gone, so there is nothing to compare with")
    model = PackedModel.load(champion)
    if model.schema.hash != Schema.load(Path(packed) / "schema.yaml").hash:
        raise NarrowcastError("the champion was trained by another schema, so the two cannot be compared")
    chunks = (rows.iloc[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return np.concatenate([model.score({name: chunk[name] for name in model.schema.input_names}) for chunk in chunks])
