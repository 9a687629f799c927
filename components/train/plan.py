"""The plan: what a search decides about every embedding table, with the exact bytes it will weigh.

A plan states, per table, how many rows are kept, in which frequency blocks, with which columns, how many bits, and in
which form: rows of their own, rows that ids share, or a codebook. So "hot ids private, the tail shared" is two blocks.
Training builds its embedding layer from a plan, packing writes the files a plan describes, and
`Plan.stored_bytes()` equals the data bytes of the packed tables.

Rows are numbered by descending training frequency, row 0 being out-of-vocabulary, so a block needs only its two
boundaries and no per-row index. An id beyond the kept rows falls back to row 0.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.components.train.forms import FORMS, QR, Codebook, Form, Hash, Part
from narrowcast.errors import NarrowcastError, nearest
from narrowcast.records import read_json, write_json
from narrowcast.settings import build

BITS = (32, 16, 8, 4, 2)
SCALE_BYTES = {32: 0, 16: 0, 8: 2, 4: 1, 2: 1}
"""A row of integers carries one scale, see `quantise.py`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows `start` to `stop` (exclusive) of a table, all with the same `columns`, `bits` and `form`.

    `columns` are the kept ones, ascending, out of the table's internal width. No columns: the rows are all-zero and
    nothing is stored for them. `bits` of a stored value: 32 is float32, 16 float16; 8, 4 and 2 are integers with one
    scale a row. `form`: None for rows of their own, else see `forms.py`.
    """

    start: int
    stop: int
    columns: tuple[int, ...]
    bits: int = 32
    form: Form | None = None

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def is_prefix(self) -> bool:
        return self.columns == tuple(range(self.width))

    @property
    def is_lossy(self) -> bool:
        """Whether what is stored is less than what was trained."""
        return bool(self.columns) and (self.bits < 32 or isinstance(self.form, Codebook))

    @property
    def is_shared(self) -> bool:
        """Whether ids have no rows of their own."""
        return isinstance(self.form, Hash | QR)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The matrices that are trained for the block; stored too, but for a codebook and for rows without columns."""
        num_ids = self.stop - self.start
        if self.form:
            return self.form.parts(num_ids, self.columns)
        return (Part(name="", rows=num_ids, columns=self.columns),)

    def row_bytes(self) -> int:
        """Bytes of one stored row, its scale included."""
        return row_bytes(self.width, self.bits)

    def stored_bytes(self) -> int:
        """Rows and their scales, or codes and centroids, and a uint8 column index where the columns are no prefix."""
        index = 0 if self.is_prefix else self.width
        if isinstance(self.form, Codebook):
            codes = (self.stop - self.start) * self.form.code_bytes
            return codes + self.form.centroids * self.width * self.bits // 8 + index
        return sum(part.rows * row_bytes(len(part.columns), self.bits) for part in self.parts) + index


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a stored row of `width` values, scale included; values of less than a byte fill up whole bytes."""
    return (width * bits + 7) // 8 + SCALE_BYTES[bits] if width else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TablePlan:
    """One field's table.

    `rows`: ids training knows, row 0 included. `blocks` cover rows 0 to `kept_rows` without gaps. `projection`: width d
    of a mixed-dimension table (columns count within d) that a stored float32 d x D matrix lifts to the model's width D.
    `inner_width`: MLET's k; the table is trained as (rows x k)(k x D) and folded before it is packed, so it costs
    nothing here.
    """

    rows: int
    blocks: tuple[Block, ...]
    projection: int | None = None
    inner_width: int | None = None

    @property
    def kept_rows(self) -> int:
        return self.blocks[-1].stop

    @property
    def trained_rows(self) -> int:
        """Rows that are trained for the kept ids; fewer than those where ids share rows."""
        return sum(part.rows for block in self.blocks for part in block.parts)

    @property
    def is_lossy(self) -> bool:
        return any(block.is_lossy for block in self.blocks)

    def is_plain(self, width: int) -> bool:
        """Whether every kept row is trained as its own `width` values, with nothing left out, folded or shared."""
        columns = tuple(range(width))
        whole = all(block.columns == columns and not block.is_shared for block in self.blocks)
        return whole and not self.projection and not self.inner_width

    def stored_bytes(self, width: int) -> int:
        """Data bytes of the packed table; `width` is the model's D."""
        lift = 4 * self.projection * width if self.projection is not None else 0
        return sum(block.stored_bytes() for block in self.blocks) + lift


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`width` is D, the width the model computes with. `tables` by vocabulary name, in the schema's order.

    `method` and `parameters` say which search made it and how.
    """

    width: int
    tables: dict[str, TablePlan]
    method: str = "full"
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            _check(name, table, self.width)

    def stored_bytes(self) -> int:
        """Data bytes of all packed tables, exact: values, scales, codebooks, column indexes and projections."""
        return sum(table.stored_bytes(self.width) for table in self.tables.values())

    def full_bytes(self) -> int:
        """Bytes of the same tables uncompressed: every row, D float32 values."""
        return sum(4 * table.rows * self.width for table in self.tables.values())

    def save(self, path: str | Path) -> None:
        write_json(path, {**asdict(self), "tables": {name: _table_json(table) for name, table in self.tables.items()}})

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan file. Raises NarrowcastError on unknown keys or a plan that contradicts itself."""
        data = read_json(path)
        try:
            tables = {
                name: TablePlan(**{**table, "blocks": tuple(_block(block, str(path)) for block in table["blocks"])})
                for name, table in data["tables"].items()
            }
            return cls(**{**data, "tables": tables})
        except (AttributeError, KeyError, TypeError) as error:
            raise NarrowcastError(f"{path} is not a plan ({error}): write it with the search step") from None

    def table(self, name: str) -> TablePlan:
        if name not in self.tables:
            raise NarrowcastError(
                f"the plan has no table '{name}': {nearest(name, self.tables)}; search again on this data"
            )
        return self.tables[name]


def full_plan(rows: Mapping[str, int], width: int, *, inner_width: int | None = None) -> Plan:
    """Every row, all D columns, float32: the model before compression. `rows` by table name."""
    columns = tuple(range(width))
    return Plan(
        width=width,
        tables={
            name: TablePlan(rows=n, blocks=(Block(start=0, stop=n, columns=columns),), inner_width=inner_width)
            for name, n in rows.items()
        },
    )


def demand_roundable(plan: Plan) -> None:
    """Raises NarrowcastError for a plan whose rounding is not known before training has ended."""
    for name, table in plan.tables.items():
        if any(isinstance(block.form, Codebook) for block in table.blocks):
            raise NarrowcastError(
                f"the plan's table '{name}' has a codebook, which is fitted after training: set quantisation_aware to "
                "false"
            )


def _table_json(table: TablePlan) -> dict[str, Any]:
    return {**asdict(table), "blocks": [_block_json(block) for block in table.blocks]}


def _block_json(block: Block) -> dict[str, Any]:
    """A form is written with its kind; rows of their own have none."""
    values = asdict(block)
    if block.form is None:
        del values["form"]
    else:
        kind = next(kind for kind, form in FORMS.items() if isinstance(block.form, form))
        values["form"] = {"kind": kind, **values["form"]}
    return values


def _block(values: dict[str, Any], where: str) -> Block:
    form = values.get("form")
    if form is not None:
        kind = form["kind"]
        if kind not in FORMS:
            raise NarrowcastError(f"{where}: no form of rows named '{kind}'; {nearest(str(kind), FORMS)}")
        rest = {key: value for key, value in form.items() if key != "kind"}
        form = build(FORMS[kind], rest, f"{where}: form '{kind}'")
    return Block(**{**values, "columns": tuple(values["columns"]), "form": form})


def _check(name: str, table: TablePlan, width: int) -> None:
    where = f"plan, table '{name}'"
    internal = width if table.projection is None else table.projection
    if not 1 <= internal <= 256:
        raise NarrowcastError(f"{where}: width {internal} must be 1 to 256, what a uint8 column index can name")
    if not table.blocks:
        raise NarrowcastError(f"{where}: no blocks; a table keeps at least row 0")
    if table.projection and table.inner_width:
        raise NarrowcastError(f"{where}: a projection and an inner width exclude each other; choose one")
    if table.inner_width is not None and table.inner_width < 1:
        raise NarrowcastError(f"{where}: inner_width is {table.inner_width}, must be at least 1")
    expected = 0
    for block in table.blocks:
        if block.start != expected or block.stop <= block.start:
            raise NarrowcastError(
                f"{where}: block {block.start}-{block.stop} should start at row {expected} and not be empty"
            )
        if block.bits not in BITS:
            raise NarrowcastError(f"{where}: {block.bits} bits; possible are {', '.join(map(str, BITS))}")
        if list(block.columns) != sorted(set(block.columns)) or not all(0 <= c < internal for c in block.columns):
            raise NarrowcastError(f"{where}: columns {block.columns} must be ascending and below {internal}")
        if block.form and not block.columns:
            raise NarrowcastError(f"{where}: block {block.start}-{block.stop} has a form but no columns; leave it out")
        if block.form and (fault := block.form.fault(block.stop - block.start, block.columns, block.bits)):
            raise NarrowcastError(f"{where}: block {block.start}-{block.stop} has {fault}")
        expected = block.stop
    if table.kept_rows > table.rows:
        raise NarrowcastError(f"{where}: keeps {table.kept_rows} of {table.rows} rows")
