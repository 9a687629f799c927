"""The two validation steps: what their suites find, what the schema's policy makes of it, what they write.

On `stop`, any failure ends the run. On `quarantine`, rows at fault are set aside, each under the first reason found, up
to `max_quarantined` of a table's rows, and the rest must pass; a failure of a table as a whole (structure, label rate,
order, a split without rows) still ends the run. The policy holds for users and items too: an event whose user or item
has lost its row follows it, unless all fields of that entity are nullable. So an unknown entity is normal just where
the schema says that its fields may be missing. Of repeated rows the first is kept.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.status import Status

from narrowcast.components.data.encoded import SPLITS
from narrowcast.components.data.schema import LABEL, ROW_ID, SPLIT, TIMESTAMP, Owner, Schema
from narrowcast.components.validate.drift import check_drift, measure_drift
from narrowcast.components.validate.site import Outcome, Site, data_docs
from narrowcast.components.validate.suite import (
    SPLIT_ORDER,
    Check,
    as_of_columns,
    entity_fields,
    entity_structure,
    entity_values,
    event_fields,
    events_structure,
    events_values,
    frame_structure,
    frame_values,
    histories_structure,
    histories_values,
)
from narrowcast.components.validate.tables import column_types, is_known, known_entities, load_values
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, write_json, writing_directory

QUARANTINE = "quarantine"
OR_QUARANTINE = ", or set checks.on_failure: quarantine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What validation found in one table.

    `reasons` maps the position of a row to be set aside to why; `kept` holds the values of the others; `failures` are
    what the policy cannot mend, in words.
    """

    table: str
    outcomes: list[Outcome]
    reasons: dict[int, str]
    kept: pd.DataFrame
    failures: list[str]


def validate_dataset(dataset: str | Path, schema: Schema, target: str | Path, docs: str | Path) -> None:
    """Check the ingested tables; write those that pass to `target`, and Data Docs to `docs` also when the run stops.

    Beside the tables lie `validation.json`, and where rows were set aside `quarantine.parquet` (events) or
    `quarantine_<table>.parquet`. Raises NarrowcastError naming column, fault and count.
    """
    dataset = Path(dataset)
    with data_docs(docs) as site, writing_directory(target) as folder, _status("validating the tables"):
        verdicts: list[Verdict] = []
        entities: dict[Owner, Verdict] = {}
        owners: tuple[tuple[Owner, str | None], ...] = (("user", schema.user), ("item", schema.item))
        for owner, key in owners:
            path = dataset / f"{owner}s.parquet"
            if key and (path.is_file() or path.stem in schema.sources):
                _demand(site, path, entity_structure(schema, owner))
                values = load_values(path, entity_fields(schema, owner))
                entities[owner] = _judge(site, path.stem, values, entity_values(schema, owner), schema)
        verdicts += entities.values()
        if schema.user and schema.history and schema.history.initial_column:
            path = dataset / "histories.parquet"
            _demand(site, path, histories_structure(schema))
            values = load_values(path, [schema.field(schema.user)])
            verdicts.append(_judge(site, path.stem, values, histories_values(schema), schema))
        path = dataset / "events.parquet"
        _demand(site, path, events_structure(schema))
        others = [LABEL, *([TIMESTAMP] if schema.timestamp else []), *(schema.checks.row_key or ())]
        values = load_values(path, event_fields(schema), others)
        metrics: dict[str, float] = {}
        for owner, key in owners:
            if key and owner in entities:
                values[is_known(key)] = known_entities(values[key], entities[owner].kept[key])
                metrics[f"events_without_{owner}"] = int((~values[is_known(key)]).sum())
        events = _judge(site, path.stem, values, events_values(schema, tuple(entities)), schema)
        verdicts.append(events)
        _stop_on_failures(verdicts)
        for verdict in verdicts:
            _write_table(dataset, folder, verdict)
            metrics[f"quarantined_{verdict.table}"] = len(verdict.reasons)
        _record("validate_raw", folder, verdicts, events, metrics, {})


def validate_frame(frame: str | Path, schema: Schema, target: str | Path, docs: str | Path) -> None:
    """Check the training frame and its drift; write it to `target`, and Data Docs to `docs` also when the run stops.

    Beside the frame lie `validation.json`, `drift.json` (`{"fields": [...]}`, one entry an input, sorted by name), and
    where rows were set aside `quarantine.parquet`. Raises NarrowcastError naming column, fault and count, or the field
    whose drift is past its limit and both figures.
    """
    frame = Path(frame)
    with data_docs(docs) as site, writing_directory(target) as folder, _status("validating the training frame"):
        path = frame / "frame.parquet"
        _demand(site, path, frame_structure(schema))
        times = [TIMESTAMP, *as_of_columns(schema)] if schema.timestamp else []
        values = load_values(path, schema.inputs, [ROW_ID, LABEL, SPLIT, *times])
        values[SPLIT_ORDER] = values[SPLIT].map({name: number for number, name in enumerate(SPLITS)}).astype("Int64")
        verdict = _judge(site, path.stem, values, frame_values(schema), schema)
        _stop_on_failures([verdict])
        _write_table(frame, folder, verdict)
        drift = measure_drift(folder / path.name, schema)
        figures = {"fields": [asdict(field) for field in drift]}
        write_json(Path(site.folder) / "drift.json", figures)
        check_drift(drift)
        write_json(folder / "drift.json", figures)
        metrics = {"max_psi": max(field.psi for field in drift)}
        _record("validate_frame", folder, [verdict], verdict, metrics, {"drift": figures["fields"]})


def _demand(site: Site, path: Path, structure: Sequence[Check]) -> None:
    """Stop here when a table's structure is not the schema's: its values could not be read."""
    outcomes = site.run(f"{path.stem} structure", path.stem, column_types(path), structure)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if failed:
        raise NarrowcastError(_sentence(failed[0], failed[0].check.mend, len(failed) - 1))


def _judge(site: Site, table: str, values: pd.DataFrame, checks: Sequence[Check], schema: Schema) -> Verdict:
    """The schema's policy applied to one table."""
    outcomes = site.run(table, table, values, checks)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    reasons: dict[int, str] = {}
    kept, failures = values, []
    if failed and schema.checks.on_failure == "stop":
        failures = [_sentence(o, o.check.mend + (OR_QUARANTINE if o.check.rows else "")) for o in failed]
    elif failed:
        for outcome in sorted(failed, key=lambda o: o.check.repeats):
            if outcome.check.rows:
                offending = site.offending_rows(kept, outcome.check)
                reasons |= dict.fromkeys(offending.tolist(), outcome.check.reason)
                kept = kept.drop(offending)
        if len(reasons) > schema.checks.max_quarantined * len(values):
            share = f"quarantine would take {len(reasons):,} of {len(values):,} rows, over checks.max_quarantined"
            failures = [_sentence(o, f"{o.check.mend} ({share})") for o in failed]
        else:
            remaining = site.run(f"{table} after quarantine", table, kept, checks)
            failures = [_sentence(outcome, outcome.check.mend) for outcome in remaining if not outcome.passed]
    return Verdict(table=table, outcomes=outcomes, reasons=reasons, kept=kept, failures=failures)


def _sentence(outcome: Outcome, mend: str, others: int = 0) -> str:
    more = f" ({others} more {'check' if others == 1 else 'checks'} failed)" if others else ""
    return f"validation of {outcome.table} failed: {outcome.sentence}: {mend}{more}"


def _stop_on_failures(verdicts: Sequence[Verdict]) -> None:
    failures = [failure for verdict in verdicts for failure in verdict.failures]
    if failures:
        others = len(failures) - 1
        more = f" ({others} more {'check' if others == 1 else 'checks'} failed)" if others else ""
        raise NarrowcastError(failures[0] + more)


def _write_table(source: Path, folder: Path, verdict: Verdict) -> None:
    """The rows kept, and those set aside with their reasons."""
    name = f"{verdict.table}.parquet"
    if not verdict.reasons:
        shutil.copyfile(source / name, folder / name)
        return
    rows = pq.read_table(source / name)
    kept = rows.take(pa.array(verdict.kept.index))
    if LABEL in kept.column_names:
        label = kept.column_names.index(LABEL)
        kept = kept.set_column(label, LABEL, kept[LABEL].cast(pa.uint8()))
    pq.write_table(kept, folder / name)
    positions = sorted(verdict.reasons)
    refused = rows.take(pa.array(positions)).append_column("reason", pa.array([verdict.reasons[p] for p in positions]))
    main = verdict.table in ("events", "frame")
    pq.write_table(refused, folder / (f"{QUARANTINE}.parquet" if main else f"{QUARANTINE}_{name}"))


def _record(
    step: str,
    folder: Path,
    verdicts: Sequence[Verdict],
    main: Verdict,
    metrics: dict[str, float],
    details: dict[str, Any],
) -> None:
    """`validation.json`, and the row account of the main table."""
    outcomes = [outcome for verdict in verdicts for outcome in verdict.outcomes]
    entries = [
        {
            "table": outcome.table,
            "column": outcome.check.column,
            "expectation": outcome.check.expectation.expectation_type,
            "passed": outcome.passed,
            "unexpected": outcome.unexpected,
            "observed": outcome.observed,
        }
        for outcome in outcomes
    ]
    write_json(folder / "validation.json", entries)
    StepRecord(
        step=step,
        rows_in=len(main.kept) + len(main.reasons),
        rows_out=len(main.kept),
        refused=dict(sorted(Counter(main.reasons.values()).items())),
        metrics=metrics | {"checks": len(entries), "failed_checks": sum(not entry["passed"] for entry in entries)},
        details=details | {"checks": entries},
    ).save(folder)


def _status(text: str) -> Status:
    """A spinner for whoever watches at a terminal."""
    return Console(stderr=True).status(text)
