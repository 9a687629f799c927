"""Raw files as streams of Arrow batches, whatever their format; text files come as text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from narrowcast.components.data.schema import Source
from narrowcast.errors import NarrowcastError, nearest

BLOCK_BYTES = 16 << 20
BATCH_ROWS = 1 << 17


def read_batches(directory: Path, source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns of one raw file, in file order and bounded memory.

    CSV and TSV (compressed too, by suffix) give strings, empty text as null; TSV knows no quotes. Parquet gives its own
    types. Raises NarrowcastError for a file that is absent, empty, broken, or lacks a column.
    """
    path = directory / source.path
    if not path.is_file():
        raise NarrowcastError(f"{path} does not exist: put the file there, or mend the path in the schema's `sources`")
    if path.stat().st_size == 0:
        raise NarrowcastError(f"{path} is empty: fetch it again")
    rows = 0
    try:
        for batch in (_parquet if source.format == "parquet" else _text)(path, source, columns):
            rows += len(batch)
            yield batch
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise NarrowcastError(
            f"{path} cannot be read as {source.format} after {rows} rows ({reason}): fetch the file again, or mend its "
            "`format` or `columns` in the schema"
        ) from None
    if rows == 0:
        raise NarrowcastError(f"{path} holds no rows: fetch it again")


def _parquet(path: Path, source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        _demand(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
            yield batch.select(list(columns))


def _text(path: Path, source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    names = source.columns or _header(path, source)
    _demand(path, columns, names)
    with pa.input_stream(path, compression="detect") as stream:
        yield from csv.open_csv(
            stream,
            csv.ReadOptions(
                column_names=names, skip_rows=0 if source.columns else 1, block_size=BLOCK_BYTES, use_threads=False
            ),
            _parsing(source),
            csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=list(columns),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )


def _header(path: Path, source: Source) -> tuple[str, ...]:
    with pa.input_stream(path, compression="detect") as stream:
        reader = csv.open_csv(stream, csv.ReadOptions(block_size=1 << 20), _parsing(source))
        return tuple(reader.schema.names)


def _parsing(source: Source) -> csv.ParseOptions:
    if source.format == "tsv":
        return csv.ParseOptions(delimiter="\t", quote_char=False)
    return csv.ParseOptions(newlines_in_values=True)


def _demand(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            raise NarrowcastError(
                f"{path} has no column '{column}', which the schema names: {nearest(column, present)}"
            )
        if list(present).count(column) > 1:
            raise NarrowcastError(f"{path} has {list(present).count(column)} columns '{column}': rename all but one")
