"""The report: one self-contained page a run, without scripts and without an address outside the file."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from narrowcast.components.data.schema import Schema
from narrowcast.components.report import dag, sections, story, values
from narrowcast.components.report.run import STEPS, Run
from narrowcast.records import write_text


def write_report(
    artifacts: Mapping[str, str], schema: Schema, *, data_version: str, git_commit: str, target: str | Path
) -> None:
    """Write the page of a run to the file `target`.

    `artifacts` gives every step's artifact folder by step name. Files that are missing are named on the page in place
    of what they would show. The data version is the one that was fetched; `data_version` where there is no record of
    that. Equal inputs give equal bytes. Raises NarrowcastError for a file that cannot be read.
    """
    run = Run.read(artifacts)
    fetched = run.records["checkout"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"v": values}
    page = environment.get_template("page.html").render(
        schema=schema,
        data_version=fetched.details["version"] if fetched else data_version,
        git_commit=git_commit,
        run=run,
        headline=story.headline(run),
        lede=story.lede(run),
        verdict=story.verdict(run),
        facts=story.facts(run),
        squares=sections.squares(run),
        gates=sections.gates(run),
        dag=(dag.wide_dag(run.records), dag.tall_dag(run.records)),
        accounts=[run.records[step] for step in STEPS if run.records[step]],
        total_seconds=sum(r.seconds or 0 for r in run.records.values() if r),
        fields=sections.fields(schema, run),
        splits=sections.splits(run),
        validations=sections.validations(run),
        drift=sections.drift(run),
        learning=sections.learning(run),
        frontier=sections.frontier(run),
        tables=sections.tables(run.plan),
        quality=sections.quality(run),
        serving=sections.serving(run),
        notes=sections.notes(run),
        manifest=run.results["compact"],
    )
    write_text(target, page)
