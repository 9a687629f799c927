"""A progress bar over streamed batches."""

import sys
from collections.abc import Iterable, Iterator

import pyarrow as pa
from rich.console import Console
from rich.progress import Progress


def watched(batches: Iterable[pa.RecordBatch], description: str, rows: int | None = None) -> Iterator[pa.RecordBatch]:
    """The batches, with a bar on standard error where that is a terminal; `rows` is their total where it is known."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=rows)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
