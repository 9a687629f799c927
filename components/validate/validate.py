"""The two validation steps: the raw tables, and the training frame with its drift.

The policy (see `judge`) holds for users and items as for events. An event whose user or item has no row, or has lost it
to quarantine, is at fault unless all other fields of that entity are nullable: an unknown entity is normal just where
the schema says that its fields may be missing.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
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
from narrowcast.components.validate.judge import Verdict, judge_table, stop_on_failures
from narrowcast.components.validate.site import Site, data_docs
from narrowcast.components.validate.suite import (
    SPLIT_ORDER,
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
from narrowcast.records import StepRecord, write_json, writing_directory


def validate_dataset(dataset: str | Path, schema: Schema, target: str | Path, docs: str | Path) -> None:
    """Check the ingested tables; write those that pass to `target`, and Data Docs to `docs` also when the run stops.

    Beside the tables lie `validation.json`, and where rows were set aside `quarantine.parquet` (events) or
    `quarantine_<table>.parquet`. Raises NarrowcastError naming column, fault and count.
    """
    dataset = Path(dataset)
    owners: tuple[tuple[Owner, str | None], ...] = (("user", schema.user), ("item", schema.item))
    with data_docs(docs) as site, writing_directory(target) as folder, _status("validating the tables"):
        entities: dict[Owner, Verdict] = {}
        for owner, key in owners:
            path = dataset / f"{owner}s.parquet"
            if key and (path.is_file() or path.stem in schema.sources):
                entities[owner] = _judge_entities(site, path, schema, owner)
        verdicts = list(entities.values())
        if schema.history and schema.history.initial_column:
            verdicts.append(_judge_histories(site, dataset / "histories.parquet", schema))
        keys = {owner: verdict.kept[key] for owner, key in owners if key and (verdict := entities.get(owner))}
        events, strangers = _judge_events(site, dataset / "events.parquet", schema, keys)
        verdicts.append(events)
        stop_on_failures(verdicts)
        for verdict in verdicts:
            _write_table(dataset, folder, verdict)
        metrics: dict[str, float] = {f"events_without_{owner}": number for owner, number in strangers.items()}
        metrics |= {f"quarantined_{verdict.table}": len(verdict.reasons) for verdict in verdicts}
        _record("validate_raw", folder, verdicts, events, metrics, {})


def validate_frame(frame: str | Path, schema: Schema, target: str | Path, docs: str | Path) -> None:
    """Check the training frame and its drift; write it to `target`, and Data Docs to `docs` also when the run stops.

    Beside the frame lie `validation.json`, `drift.json` (`{"fields": [...]}`, one entry an input, sorted by name), and
    where rows were set aside `quarantine.parquet`. Raises NarrowcastError naming column, fault and count, or the field
    whose drift is past its limit and both figures.
    """
    frame = Path(frame)
    with data_docs(docs) as site, writing_directory(target) as folder, _status("validating the training frame"):
        verdict = _judge_frame(site, frame / "frame.parquet", schema)
        stop_on_failures([verdict])
        _write_table(frame, folder, verdict)
        drift = measure_drift(folder / "frame.parquet", schema)
        figures = {"fields": [asdict(field) for field in drift]}
        write_json(site.folder / "drift.json", figures)
        check_drift(drift)
        write_json(folder / "drift.json", figures)
        metrics = {"max_psi": max(field.psi for field in drift)}
        _record("validate_frame", folder, [verdict], verdict, metrics, {"drift": figures["fields"]})


def _judge_entities(site: Site, path: Path, schema: Schema, owner: Owner) -> Verdict:
    return judge_table(
        site,
        path.stem,
        column_types(path),
        entity_structure(schema, owner),
        lambda: load_values(path, entity_fields(schema, owner)),
        entity_values(schema, owner),
        schema.checks,
    )


def _judge_histories(site: Site, path: Path, schema: Schema) -> Verdict:
    assert schema.user is not None
    key = schema.field(schema.user)
    return judge_table(
        site,
        path.stem,
        column_types(path),
        histories_structure(schema),
        lambda: load_values(path, [key]),
        histories_values(schema),
        schema.checks,
    )


def _judge_events(
    site: Site, path: Path, schema: Schema, entity_keys: dict[Owner, pd.Series]
) -> tuple[Verdict, dict[Owner, int]]:
    """The verdict, and by owner the number of events whose entity has no row."""
    strangers: dict[Owner, int] = {}

    def load() -> pd.DataFrame:
        times = [TIMESTAMP] if schema.timestamp else []
        values = load_values(path, event_fields(schema), [LABEL, *times, *(schema.checks.row_key or ())])
        for owner, keys in entity_keys.items():
            known = known_entities(values[keys.name], keys)
            values[is_known(str(keys.name))] = known
            strangers[owner] = int((~known).sum())
        return values

    checks = events_values(schema, entity_keys.keys())
    verdict = judge_table(site, path.stem, column_types(path), events_structure(schema), load, checks, schema.checks)
    return verdict, strangers


def _judge_frame(site: Site, path: Path, schema: Schema) -> Verdict:
    def load() -> pd.DataFrame:
        times = [TIMESTAMP, *as_of_columns(schema)] if schema.timestamp else []
        values = load_values(path, schema.inputs, [ROW_ID, LABEL, SPLIT, *times])
        order = {name: number for number, name in enumerate(SPLITS)}
        values[SPLIT_ORDER] = values[SPLIT].map(order).astype("Int64")
        return values

    checks = frame_values(schema)
    return judge_table(site, path.stem, column_types(path), frame_structure(schema), load, checks, schema.checks)


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
    pq.write_table(refused, folder / ("quarantine.parquet" if LABEL in rows.column_names else f"quarantine_{name}"))


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
