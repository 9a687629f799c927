"""Where the packed model lies that a run is judged against."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrowcast import objects


@contextmanager
def fetched_champion(champion: str) -> Iterator[str]:
    """The champion's folder on this machine, empty where there is no champion.

    `champion`: that folder, or the address of the endpoint's state on object storage; then the model that serves by now
    is fetched, and is gone after the block. Raises NarrowcastError where the storage does not give it.
    """
    if not objects.is_remote(champion):
        yield champion
    elif not objects.exists(champion):
        yield ""
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            objects.fetch(objects.read_json(champion)["model_path"], model)
            yield str(model)
