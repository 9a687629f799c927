"""The forms that a block's rows can take beside rows of their own: shared rows (hash, quotient-remainder), codebooks.

A form says in which parts its block is trained and stored, and which rows of them an id reads. Local ids count from the
block's first row. A block's `columns` are those its rows have once they are put together.
"""

from dataclasses import dataclass

COMBINES = ("multiply", "add", "concatenate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A matrix of `rows` rows that is trained and stored as one, with values in `columns` of the table's width.

    `name`: what its tensors are called after within their block; empty where a block has one part.
    """

    name: str
    rows: int
    columns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hash:
    """`buckets` rows that all ids of the block share: local id i reads row i mod `buckets`.

    As ids are ranked by frequency, ids that share a row are `buckets` ranks apart (our choice of a hash function).
    """

    buckets: int

    def parts(self, num_ids: int, columns: tuple[int, ...]) -> tuple[Part, ...]:
        return (Part(name="", rows=self.buckets, columns=columns),)

    def fault(self, num_ids: int, columns: tuple[int, ...], bits: int) -> str | None:
        """What is wrong with this form for a block of `num_ids` rows, if anything."""
        if not 1 <= self.buckets < num_ids:
            return f"{self.buckets} buckets for {num_ids} rows; give at least 1 and fewer than the rows"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class QR:
    """Quotient-remainder (arXiv 1909.02107, section 3): local id i reads rows i mod m and i div m of two small parts.

    `remainders` is m. No two ids of a block have the same two rows. `combine`: the rows are multiplied or added, value
    by value, or concatenated; then the remainder's has the first half of the columns (the greater, of an odd number).
    """

    remainders: int
    combine: str = "multiply"

    def parts(self, num_ids: int, columns: tuple[int, ...]) -> tuple[Part, ...]:
        """The remainders' part, then the quotients'."""
        half = (len(columns) + 1) // 2
        first, second = (columns[:half], columns[half:]) if self.combine == "concatenate" else (columns, columns)
        return (
            Part(name="remainder", rows=self.remainders, columns=first),
            Part(name="quotient", rows=-(-num_ids // self.remainders), columns=second),
        )

    def initial_scale(self, init_std: float) -> float:
        """By what initial values of `init_std` are scaled for the combined rows to have it (our choice)."""
        return {"multiply": init_std**-0.5, "add": 0.5**0.5, "concatenate": 1.0}[self.combine]

    def fault(self, num_ids: int, columns: tuple[int, ...], bits: int) -> str | None:
        """What is wrong with this form for a block of `num_ids` rows, if anything."""
        if self.combine not in COMBINES:
            return f"combine '{self.combine}'; possible are {', '.join(COMBINES)}"
        if self.remainders < 1 or sum(part.rows for part in self.parts(num_ids, columns)) >= num_ids:
            return f"{self.remainders} remainders need no fewer rows than the {num_ids} they are to stand for"
        if self.combine == "concatenate" and len(columns) < 2:
            return "one column cannot be concatenated of two"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Codebook:
    """Product quantisation: every row is `groups` codes, each naming one of `centroids` vectors for its columns.

    Rows are trained as their own and the centroids fitted afterwards (`codebook.py`). A group is as many neighbouring
    columns as the others. The block's bits, 32 or 16, are those of a centroid's value. A code has 8 bits, or 4 where
    16 centroids are all there are (our choice: codes never straddle bytes).
    """

    groups: int
    centroids: int = 256

    @property
    def code_bits(self) -> int:
        return 4 if self.centroids <= 16 else 8

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's codes."""
        return (self.groups * self.code_bits + 7) // 8

    def parts(self, num_ids: int, columns: tuple[int, ...]) -> tuple[Part, ...]:
        return (Part(name="", rows=num_ids, columns=columns),)

    def fault(self, num_ids: int, columns: tuple[int, ...], bits: int) -> str | None:
        """What is wrong with this form for a block of `num_ids` rows, if anything."""
        if self.groups < 1 or len(columns) % self.groups:
            return f"{self.groups} groups of {len(columns)} columns; the groups must be equally wide"
        if not 2 <= self.centroids <= 256 or self.centroids >= num_ids:
            return f"{self.centroids} centroids for {num_ids} rows; give 2 to 256 and fewer than the rows"
        if bits not in (32, 16):
            return f"a codebook of {bits} bits; its centroids have 32 or 16"
        return None


Form = Hash | QR | Codebook
FORMS: dict[str, type[Form]] = {"hash": Hash, "qr": QR, "codebook": Codebook}
"""By the `kind` that a plan's file gives."""
