"""Runs checks through Great Expectations and writes its Data Docs."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from numpy.typing import NDArray

from narrowcast.components.validate.suite import Check
from narrowcast.errors import NarrowcastError
from narrowcast.records import writing_directory


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one check.

    `unexpected` of `rows` rows failed (None for a check of the table as a whole); `observed` is the figure found, or an
    example of the failing values.
    """

    table: str
    check: Check
    passed: bool
    rows: int | None
    unexpected: int | None
    observed: str | None

    @property
    def sentence(self) -> str:
        """The fault in words: column, fault, count, example."""
        check = self.check
        subject = f"column '{check.column}'" if check.column != "*" else "columns"
        if not check.rows:
            return f"{subject} {check.fault}" + (f" (found {self.observed})" if self.observed else "")
        example = f" (such as {self.observed})" if self.observed else ""
        return f"{subject} has {self.unexpected or 0:,} of {self.rows or 0:,} {check.fault}{example}"


class Site:
    """A Great Expectations context in memory whose Data Docs go to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = gx.get_context(mode="ephemeral")
        self.context.variables.progress_bars = ProgressBarsConfig(globally=False)
        for name in self.context.get_site_names():
            self.context.delete_data_docs_site(name)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        self.context.add_data_docs_site(
            "docs", {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
        )
        self.source = self.context.data_sources.add_pandas("narrowcast")

    def run(self, name: str, table: str, values: pd.DataFrame, checks: Sequence[Check]) -> list[Outcome]:
        """Judge the checks, in their order, and keep the result for the site under `name`."""
        suite = gx.ExpectationSuite(name)
        for number, check in enumerate(checks):
            suite.add_expectation(check.expectation.copy(update={"meta": {"check": number}}))
        suite = self.context.suites.add(suite)
        data = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        validation = self.context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
        with _quick_pandas():
            report = validation.run(
                batch_parameters={"dataframe": values},
                result_format={"result_format": "BASIC", "partial_unexpected_count": 3},
            )
        outcomes = []
        for check, result in zip(checks, sorted(report.results, key=_number), strict=True):
            unexpected = result.result.get("unexpected_count")
            if unexpected and check.repeats:
                unexpected = len(self.offending_rows(values, check))
            outcomes.append(
                Outcome(
                    table=table,
                    check=check,
                    passed=bool(result.success),
                    rows=result.result.get("element_count") if check.rows else None,
                    unexpected=unexpected if check.rows else None,
                    observed=_observed(result.result) if _shows_values(check) else None,
                )
            )
        return outcomes

    def offending_rows(self, values: pd.DataFrame, check: Check) -> NDArray[np.int64]:
        """Index labels of the rows that fail a check by rows, as Great Expectations lists them."""
        asset = self.source.add_dataframe_asset(f"rows {len(self.source.assets)}")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": values})
        with _quick_pandas():
            result = batch.validate(check.expectation, result_format={"result_format": "COMPLETE"})
        rows = np.asarray(result.result.get("unexpected_index_list") or [], np.int64)
        if check.repeats:
            columns = [c for c in values.columns if c in _columns(check)]
            rows = rows[values.loc[rows, columns].duplicated().to_numpy()]
        return rows

    def build(self) -> None:
        self.context.build_data_docs()


@contextlib.contextmanager
def data_docs(target: str | Path) -> Iterator[Site]:
    """A site written to `target` when the block ends, also by a NarrowcastError, whose sentence then names the page."""
    failure: NarrowcastError | None = None
    with writing_directory(target) as folder:
        site = Site(folder)
        try:
            yield site
        except NarrowcastError as error:
            failure = error
        site.build()
    if failure:
        raise NarrowcastError(f"{failure}; see {Path(target) / 'index.html'}")


@contextlib.contextmanager
def _quick_pandas() -> Iterator[None]:
    """Copy-on-write: Great Expectations copies the table for every expectation, which else takes most of the time."""
    with pd.option_context("mode.copy_on_write", True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _number(result: ExpectationValidationResult) -> int:
    assert result.expectation_config is not None
    return result.expectation_config.meta["check"]


def _shows_values(check: Check) -> bool:
    """Whether the expectation reads the column that the check names, not one that was added to stand for it."""
    return getattr(check.expectation, "column", check.column) == check.column


def _columns(check: Check) -> list[str]:
    """The columns that a check of uniqueness reads."""
    expectation: Any = check.expectation
    return list(getattr(expectation, "column_list", None) or [expectation.column])


def _observed(found: dict[str, Any]) -> str | None:
    mismatched = found.get("details", {}).get("mismatched", {})
    if mismatched:
        return "; ".join(f"{kind} {', '.join(names)}" for kind, names in sorted(mismatched.items()))
    if "observed_value" in found:
        return _text(found["observed_value"])
    for value in found.get("partial_unexpected_list", []):
        if not (value is None or value is pd.NaT or value != value):  # NaN is not itself
            return _text(value)
    return None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(_text(v) for v in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    return str(value)[:100]
