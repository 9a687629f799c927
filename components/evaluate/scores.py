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


class NoChampionError(NarrowcastError):
    """There is no champion to compare with, and why."""


class Attempt:
    """What a function of a model returned, or its `failure`: a bad model may fail in any way."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._found: Any = None
        self.failure: Exception | None = None
        try:
            self._found = work()
        except Exception as error:
            self.failure = error

    def get(self) -> Any:
        """Raises the failure, if there was one."""
        if self.failure is not None:
            raise self.failure
        return self._found


def checkpoint_scores(directory: str, test: Split) -> Scores:
    return predict(load_checkpoint(directory), test)


def packed_scores(directory: str, test: Split) -> Scores:
    model = PackedModel.load(directory)
    return np.concatenate([model.batch_scores(batch) for batch, _ in test.batches(BATCH)])


def champion_scores(champion: str, packed: str, rows: pd.DataFrame) -> Scores:
    """The champion's probabilities of the same rows, by its own encoder.

    Raises NoChampionError where there is none, none that loads, or one of another schema.
    """
    if not champion:
        raise NoChampionError("no champion is deployed, so there is nothing to fall behind")
    try:
        model = PackedModel.load(champion)
    except NarrowcastError as error:
        raise NoChampionError(f"the champion cannot be loaded, so there is nothing to fall behind ({error})") from None
    if model.schema.hash != Schema.load(Path(packed) / "schema.yaml").hash:
        raise NoChampionError("the champion was trained by another schema, so the two cannot be compared")
    columns = {name: _with_none(rows[name]) for name in model.schema.input_names}
    starts = range(0, len(rows), BATCH)
    return np.concatenate([model.score({k: v[i : i + BATCH] for k, v in columns.items()}) for i in starts])


def _with_none(values: pd.Series) -> list[Any]:
    """Missing values as None, which the encoder takes for any type."""
    return [value if isinstance(value, np.ndarray | list) or pd.notna(value) else None for value in values]
