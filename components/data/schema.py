"""The schema: one YAML file a data set, from which validation, features, encoding, model inputs and the server follow.

Nobody writes a field's name a second time: whatever needs the fields asks the schema for them.
"""

import dataclasses
import hashlib
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.settings import build

FieldType = Literal["categorical", "numeric", "sequence"]
Owner = Literal["user", "item", "context"]
Table = Literal["events", "users", "items", "histories"]

ROW_ID = "row_id"
"""The generated key that numbers the events as they were ingested; every later step keeps it."""
LABEL = "label"
TIMESTAMP = "event_timestamp"
SPLIT = "split"
HISTORY = "history"
RESERVED = (ROW_ID, LABEL, TIMESTAMP, SPLIT, HISTORY, "user_as_of", "item_as_of", "reason")
"""Columns that the tables and the frame have of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One model input that the raw data holds.

    `column` is its name in the raw file (default: `name`). `min_count` is the id threshold: an id seen in fewer
    training rows shares the out-of-vocabulary row 0. `min`, `max` and `values` bound what validation lets pass.
    `nullable` says that missing values are normal: a categorical then gets an id for "missing", a numeric gets 0 after
    scaling. `transform` scales a numeric: `standard` to zero mean and unit variance, `log` to sign(x) log(1 + |x|) and
    then `standard`, `none` not at all. A `sequence` is a list column, or text split at `separator`, cut to the first
    `max_length`; it has a vocabulary of its own.
    """

    name: str
    type: FieldType
    owner: Owner = "context"
    column: str | None = None
    min_count: int = 1
    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] | None = None
    nullable: bool = False
    transform: Literal["standard", "log", "none"] = "standard"
    separator: str | None = None
    max_length: int = 8

    @property
    def raw_column(self) -> str:
        return self.column or self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where one raw table lies: `path` relative to the raw data directory, and how to read it.

    `columns` names the columns of a file without a header line.
    """

    path: str
    format: Literal["csv", "tsv", "parquet"]
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The click: `column` of the events, already 0 or 1, or 1 where the column is at least `at_least`."""

    column: str
    at_least: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timestamp:
    """`unit` says how the column tells time: a count since 1970, ISO 8601 text, or Avazu's hours such as 14091123."""

    column: str
    unit: Literal["s", "ms", "us", "iso", "YYMMDDHH"] = "s"


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The user's last `max_length` items before the event, newest last; only positively labelled ones by default.

    `initial_column` is a list column of the `histories` source: items the user met before the log begins, oldest first.
    """

    max_length: int = 50
    positive_only: bool = True
    initial_column: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Shares of the rows held out; by time where the schema has a timestamp, else at random."""

    validation: float = 0.1
    test: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """What validation demands beyond the fields' own bounds.

    `on_failure`: `stop` ends the run; `quarantine` sets the offending rows aside and accounts for them, up to
    `max_quarantined` of the rows. `label_rate` bounds the share of positives. `row_key`: columns (raw names of the
    events) that together must be unique. `max_drift` bounds the population stability index of every field between the
    training period and the later one; `max_unseen` the share of later rows whose id training never saw.
    """

    on_failure: Literal["stop", "quarantine"] = "stop"
    max_quarantined: float = 0.01
    label_rate: tuple[float, float] = (0.001, 0.999)
    row_key: tuple[str, ...] | None = None
    max_drift: float = 1.0
    max_unseen: float = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """Official address of a data set and md5 by file, for `narrowcast data get`.

    `wheel` is a requirement such as `recbole==1.2.1` whose wheel holds the files under `inside`.
    """

    url: str | None = None
    wheel: str | None = None
    inside: str = ""
    md5: dict[str, str] = dataclasses.field(default_factory=dict)
    terms: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """See the module. `user` and `item` name the categorical fields that are the entities' keys, where there are any.

    `leakage` lists raw columns known only after the event; they are refused as inputs. `statistics` adds trailing
    counts and click rates of the user and the item as numeric inputs.
    """

    name: str
    sources: dict[Table, Source]
    label: Label
    fields: tuple[Field, ...]
    description: str = ""
    timestamp: Timestamp | None = None
    user: str | None = None
    item: str | None = None
    leakage: tuple[str, ...] = ()
    history: History | None = None
    statistics: bool = True
    split: Split = dataclasses.field(default_factory=Split)
    checks: Checks = dataclasses.field(default_factory=Checks)
    download: Download | None = None

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_text(cls, text: str, *, where: str = "the schema") -> "Schema":
        """Parse a schema's YAML. Raises NarrowcastError naming the key and the nearest valid one."""
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise NarrowcastError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict):
            raise NarrowcastError(f"{where} must be a YAML mapping; draft one with `narrowcast data describe FILE`")
        return typing.cast(Schema, build(cls, data, where))

    @classmethod
    def load(cls, path: str | Path) -> "Schema":
        """Read a schema file, or the shipped schema of that name."""
        return cls.from_text(schema_text(path), where=str(path))

    def to_text(self) -> str:
        """The schema as YAML, defaults left out; `from_text` gives it back."""
        return yaml.safe_dump(_plain(self), sort_keys=False, allow_unicode=True, width=120)

    @property
    def hash(self) -> str:
        """md5 of the schema's meaning: comments and key order of the YAML do not count."""
        return hashlib.md5(self.to_text().encode(), usedforsecurity=False).hexdigest()

    @property
    def feature_service(self) -> str:
        """Name of the Feast service that a model of this schema reads; it changes whenever the features may."""
        return f"{self.name}_{self.hash[:8]}"

    def field(self, name: str) -> Field:
        for candidate in self.inputs:
            if candidate.name == name:
                return candidate
        raise NarrowcastError(f"schema '{self.name}' has no field '{name}': {nearest(name, self.input_names)}")

    @property
    def statistics_fields(self) -> tuple[Field, ...]:
        """The trailing statistics as numeric inputs: count and click rate up to the moment, for user and item."""
        if not (self.statistics and self.timestamp):
            return ()
        found: list[Field] = []
        owners: tuple[tuple[Owner, str | None], ...] = (("user", self.user), ("item", self.item))
        for owner, key in owners:
            if key:
                found.append(Field(name=f"{owner}_events", type="numeric", owner=owner, min=0, transform="log"))
                found.append(Field(name=f"{owner}_click_rate", type="numeric", owner=owner, min=0, max=1))
        return tuple(found)

    @property
    def trailing_counts(self) -> tuple[str, ...]:
        """Names of the trailing statistics that count events."""
        return tuple(f.name for f in self.statistics_fields if f.name.endswith("_events"))

    @property
    def history_field(self) -> Field | None:
        """The user's history as a sequence input named `history`; its ids are those of the item field."""
        if not (self.history and self.user and self.item and self.timestamp):
            return None
        return Field(name=HISTORY, type="sequence", owner="user", max_length=self.history.max_length)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """Every model input, raw fields first, then the derived ones."""
        derived = (*self.statistics_fields, *((self.history_field,) if self.history_field else ()))
        return (*self.fields, *derived)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.inputs)

    def of_type(self, type_: FieldType) -> tuple[Field, ...]:
        return tuple(f for f in self.inputs if f.type == type_)

    def vocabulary_of(self, field: Field) -> str:
        """Name of the field whose vocabulary and embedding table `field` uses (the history uses the item's)."""
        return self.item if field.name == HISTORY and self.item else field.name


def schema_text(name_or_path: str | Path) -> str:
    """The YAML text of a schema file, or of the shipped schema of that name."""
    path = Path(name_or_path)
    shipped = Path(__file__).resolve().parents[2] / "schemas"
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise NarrowcastError(f"schema file {path} does not exist: draft one with `narrowcast data describe FILE`")
        return _read(path)
    shipped_path = shipped / f"{path}.yaml"
    if not shipped_path.is_file():
        raise NarrowcastError(f"no schema named '{path}': {nearest(str(path), shipped_names())}, or give a .yaml file")
    return _read(shipped_path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise NarrowcastError(f"schema file {path} is not UTF-8 text: save it as such") from None


def shipped_names() -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "schemas").glob("*.yaml")))


def _check(schema: Schema) -> None:
    where = f"schema '{schema.name}'"
    names = [f.name for f in schema.fields]
    if not _is_identifier(schema.name):
        raise NarrowcastError(f"{where}: its name must be a plain identifier (letters, digits, underscores)")
    if not names:
        raise NarrowcastError(f"{where} has no fields: name at least one model input")
    lower = [name.lower() for name in names]  # SQL and some file systems do not tell upper from lower case
    reserved = {*RESERVED, *(f.name for f in schema.statistics_fields)}
    for name in names:
        if lower.count(name.lower()) > 1:
            raise NarrowcastError(f"{where} names field '{name}' twice (case does not count): rename or remove one")
        if not _is_identifier(name):
            raise NarrowcastError(
                f"{where}: field name '{name}' is not a plain identifier; use `column:` for the raw name"
            )
        if name.lower() in reserved:
            raise NarrowcastError(
                f"{where}: the field name '{name}' is reserved; rename it and give the raw name as `column:`"
            )
    if "events" not in schema.sources:
        raise NarrowcastError(f"{where} has no source 'events': name the file that holds one row a click or impression")
    for table, source in schema.sources.items():
        if Path(source.path).is_absolute() or ".." in Path(source.path).parts:
            raise NarrowcastError(
                f"{where}: the path '{source.path}' of source '{table}' must lie in the raw data directory"
            )
    for table, used in (
        ("users", schema.user),
        ("items", schema.item),
        ("histories", schema.history and schema.history.initial_column),
    ):
        if table in schema.sources and not used:
            need = "history.initial_column" if table == "histories" else f"{table[:-1]} key"
            raise NarrowcastError(f"{where} has a source '{table}' but no {need}: name it or remove the source")
    for role, key in (("user", schema.user), ("item", schema.item)):
        if key is None:
            continue
        if key not in names:
            raise NarrowcastError(f"{where}: {role} key '{key}' is not a field: {nearest(key, names)}")
        spec = schema.fields[names.index(key)]
        if spec.type != "categorical" or spec.owner != role:
            raise NarrowcastError(f"{where}: {role} key '{key}' must be a categorical field with owner '{role}'")
    for f in schema.fields:
        if f.raw_column in schema.leakage or f.name in schema.leakage:
            raise NarrowcastError(
                f"{where}: field '{f.name}' reads '{f.raw_column}', which the schema lists as leakage (known only "
                "after the event): remove it from `fields` or from `leakage`"
            )
        if f.raw_column == schema.label.column:
            raise NarrowcastError(
                f"{where}: field '{f.name}' reads the label column '{f.raw_column}': remove it from `fields`"
            )
        if f.owner != "context" and getattr(schema, f.owner) is None:
            raise NarrowcastError(
                f"{where}: field '{f.name}' belongs to the {f.owner}, but the schema names no {f.owner} key"
            )
        if f.min_count < 1 or f.max_length < 1:
            raise NarrowcastError(f"{where}: field '{f.name}' needs min_count and max_length of at least 1")
        _check_options(where, f)
    if all(f.type == "numeric" for f in schema.fields):
        raise NarrowcastError(
            f"{where} has numeric fields alone, so there is no embedding table to train: make one of them categorical, "
            "or add a field of ids"
        )
    _check_row_key(where, schema)
    if schema.history and schema.history.max_length < 1:
        raise NarrowcastError(f"{where}: history.max_length must be at least 1")
    if schema.history and not (schema.user and schema.item and schema.timestamp):
        raise NarrowcastError(f"{where}: a history needs `user`, `item` and `timestamp`: name them or remove `history`")
    if schema.history and schema.history.initial_column and "histories" not in schema.sources:
        raise NarrowcastError(f"{where}: history.initial_column needs a source 'histories'")
    if not 0 < schema.split.validation + schema.split.test < 1 or min(schema.split.validation, schema.split.test) <= 0:
        raise NarrowcastError(f"{where}: split shares must be positive and add up to less than 1")
    low, high = schema.checks.label_rate
    if not 0 <= low <= high <= 1 or not 0 <= schema.checks.max_quarantined <= 1:
        raise NarrowcastError(
            f"{where}: checks.label_rate (low, high) and checks.max_quarantined are shares from 0 to 1"
        )


def _is_identifier(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None


def _check_options(where: str, f: Field) -> None:
    """An option that a field's type has no use for is a mistake, not a wish."""
    fitting: dict[str, tuple[str, ...]] = dict.fromkeys(("min", "max", "transform"), ("numeric",))
    fitting |= dict.fromkeys(("separator", "max_length"), ("sequence",))
    fitting["min_count"] = ("categorical", "sequence")
    defaults = {spec.name: spec.default for spec in dataclasses.fields(Field)}
    for option, types_ in fitting.items():
        if getattr(f, option) != defaults[option] and f.type not in types_:
            raise NarrowcastError(
                f"{where}: field '{f.name}' is {f.type}, but '{option}' is for {' and '.join(types_)} fields: remove it"
            )
    if f.values is not None and f.type == "numeric":
        raise NarrowcastError(f"{where}: field '{f.name}' is numeric, but 'values' lists ids: use min and max")
    if f.min is not None and f.max is not None and f.min > f.max:
        raise NarrowcastError(f"{where}: field '{f.name}' has min {f.min:g} above max {f.max:g}: swap them")
    if f.separator == "":
        raise NarrowcastError(f"{where}: field '{f.name}' has an empty separator: name the text between two elements")


def _check_row_key(where: str, schema: Schema) -> None:
    """The events hold the key's raw columns beside their own, so a name must mean the same in both."""
    raw_column = dict.fromkeys(RESERVED) | {f.name: f.raw_column for f in schema.fields}
    raw_column[LABEL] = schema.label.column
    raw_column[TIMESTAMP] = schema.timestamp and schema.timestamp.column
    elsewhere = {f.name for f in schema.fields if f.owner != "context"} - {schema.user, schema.item}
    for column in schema.checks.row_key or ():
        if raw_column.get(column, column) != column or column in elsewhere:
            raise NarrowcastError(
                f"{where}: checks.row_key names '{column}', which means another column here: leave it out"
            )


def _plain(value: Any) -> Any:
    """Dataclasses to YAML values, without what equals its default."""
    if dataclasses.is_dataclass(value):
        plain: dict[str, Any] = {}
        for spec in dataclasses.fields(value):
            here = getattr(value, spec.name)
            default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
            if here != default:
                plain[spec.name] = _plain(here)
        return plain
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in sorted(value.items())}
    return value
