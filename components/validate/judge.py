"""The schema's policy on what a suite finds in a table.

On `stop`, any failure ends the run. On `quarantine`, rows at fault are set aside, each under the first reason found, up
to `max_quarantined` of the table's rows, and the rest must pass. Of repeated rows the first that has no other fault is
kept. A failure that no row explains (structure, label rate, order, a split without rows) always ends the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from narrowcast.components.data.schema import Checks
from narrowcast.components.validate.site import Outcome, Site
from narrowcast.components.validate.suite import Check
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What validation found in one table.

    `outcomes` are those of all rows; `reasons` maps the position of a row set aside to why; `kept` holds the values of
    the others; `failures` say in words what ends the run.
    """

    table: str
    outcomes: list[Outcome]
    kept: pd.DataFrame
    reasons: dict[int, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def judge_table(
    site: Site,
    table: str,
    types: pd.DataFrame,
    structure: Sequence[Check],
    load: Callable[[], pd.DataFrame],
    checks: Sequence[Check],
    policy: Checks,
) -> Verdict:
    """Check a table's structure, given its `types`, then the values that `load` reads, and apply the policy.

    Raises NarrowcastError when the structure is wrong, for then the values cannot be read.
    """
    structural = site.run(f"{table} structure", table, types, structure)
    failed = [outcome for outcome in structural if not outcome.passed]
    if failed:
        raise NarrowcastError(_sentence(failed[0]))
    values = load()
    judged = site.run(table, table, values, checks)
    outcomes = structural + judged
    failed = [outcome for outcome in judged if not outcome.passed]
    if policy.on_failure == "stop" or not failed:
        failures = [
            _sentence(o, ", or set checks.on_failure: quarantine" if o.check.quarantine else "") for o in failed
        ]
        return Verdict(table=table, outcomes=outcomes, kept=values, failures=failures)
    reasons, kept = _set_aside(site, values, [outcome.check for outcome in failed if outcome.check.quarantine])
    if len(reasons) > policy.max_quarantined * len(values):
        excess = (
            f", or raise checks.max_quarantined from {policy.max_quarantined:g}, for quarantine would take "
            f"{len(reasons):,} of {len(values):,} rows"
        )
        failures = [_sentence(outcome, excess) for outcome in failed]
    else:
        again = site.run(f"{table} after quarantine", table, kept, checks) if reasons else judged
        failures = [_sentence(outcome) for outcome in again if not outcome.passed]
    return Verdict(table=table, outcomes=outcomes, kept=kept, reasons=reasons, failures=failures)


def stop_on_failures(verdicts: Sequence[Verdict]) -> None:
    """Raise NarrowcastError with the first failure and the number of others."""
    failures = [failure for verdict in verdicts for failure in verdict.failures]
    if failures:
        others = len(failures) - 1
        more = f" ({others} more {'check' if others == 1 else 'checks'} failed)" if others else ""
        raise NarrowcastError(failures[0] + more)


def _set_aside(site: Site, values: pd.DataFrame, checks: Sequence[Check]) -> tuple[dict[int, str], pd.DataFrame]:
    """Reasons by row, and the values of the other rows."""
    reasons: dict[int, str] = {}
    kept = values
    for check in sorted(checks, key=lambda check: check.repeats):
        rows = site.offending_rows(kept, check)
        reasons |= dict.fromkeys(rows.tolist(), f"{check.column}: {check.fault}")
        kept = kept.drop(rows)
    return reasons, kept


def _sentence(outcome: Outcome, mend: str = "") -> str:
    return f"validation of {outcome.table} failed: {outcome.sentence}: {outcome.check.mend}{mend}"
