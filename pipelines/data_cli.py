"""`narrowcast data`: get, describe, synthesise and version raw data; the drift of what a server is asked."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from narrowcast.errors import NarrowcastError
from narrowcast.records import write_text

if TYPE_CHECKING:
    from narrowcast.components.data.schema import Schema
    from narrowcast.components.validate.drift import FieldDrift

data = typer.Typer(help="Get, describe, synthesise and version raw data; measure drift.", no_args_is_help=True)
out = Console()

RAW = Path("data/raw")


@data.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the shipped data sets: what they are and where they come from.

    Example: `narrowcast data list`
    """
    from narrowcast.components.data.get import available

    rows = available()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "what it is", "from", "terms")
    for row in rows:
        table.add_row(row["name"], row["description"], row["source"], row["terms"])
    out.print(table)


@data.command()
def get(
    name: Annotated[str, typer.Argument(help="A name from `narrowcast data list`.")],
    from_dir: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Folder that holds the files already.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Folder to write; default data/raw/NAME.")] = None,
) -> None:
    """Bring a data set's raw files here and check their md5.

    Example: `narrowcast data get ml_100k`
    """
    from narrowcast.components.data.get import get as work

    out.print(f"{name} lies in {work(name, target or RAW / name, from_dir=from_dir)}", soft_wrap=True)


@data.command()
def describe(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet file, one row a click or impression.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: the file's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the schema here.")] = None,
) -> None:
    """Draft a schema for a file of your own; read it, mend it, run it.

    Example: `narrowcast data describe data/raw/shop/clicks.csv -o shop.yaml`
    """
    from narrowcast.components.data.describe import describe as work

    text = work(file, name)
    if output:
        write_text(output, text)
        follow = f"narrowcast run --schema {output} --data {file.parent}"
        out.print(f"wrote {output}: check the label, the keys and the leakage, then `{follow}`", soft_wrap=True)
    else:
        print(text, end="")


@data.command()
def synth(
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    rows: Annotated[int, typer.Option(help="Events.", min=1)] = 1_000_000,
    users: Annotated[int, typer.Option(help="Users.", min=1)] = 100_000,
    items: Annotated[int, typer.Option(help="Items.", min=1)] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed; same seed, same bytes.")] = 0,
    drift: Annotated[
        float, typer.Option(help="How far tastes and popularity move from first row to last; 0: not at all.", min=0.0)
    ] = 0.0,
) -> None:
    """Write synthetic clicks with a structure that a model can learn, and their schema.yaml.

    Example: `narrowcast data synth data/raw/synthetic --rows 1000000`
    """
    from narrowcast.components.data.synth import synth as work

    made = work(target, rows=rows, users=users, items=items, seed=seed, drift=drift)
    out.print(f"wrote {rows:,} events to {target}; {made}", soft_wrap=True)


@data.command()
def snapshot(
    folder: Annotated[Path, typer.Argument(help="Raw data below the checkout.")],
    commit: Annotated[bool, typer.Option(help="Commit the pointer file with Git.")] = True,
) -> None:
    """Version raw data with DVC, push it to the default remote and print its md5.

    From then on `latest:NAME`, with the folder's name, means this version on that remote.

    Example: `narrowcast data snapshot data/raw/ml_100k`
    """
    from narrowcast.components.data.versions import snapshot as work

    print(work(folder, commit=commit))


@data.command()
def checkout(
    version: Annotated[str, typer.Argument(help="md5 that `snapshot` printed, or `latest:NAME`.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    remote: Annotated[str, typer.Option(help="DVC remote; default: the checkout's own.")] = "",
) -> None:
    """Fetch one version of raw data from the DVC remote; needs no Git.

    Example: `narrowcast data checkout 1f0a...dir data/raw/old`

    Example: `narrowcast data checkout latest:shop data/raw/shop --remote s3://narrowcast/data`
    """
    from narrowcast.components.data.versions import checkout as work
    from narrowcast.pipelines.parameters import remote_address

    fetched = work(version, remote_address(remote, Path.cwd()), target)
    out.print(f"version {fetched} lies in {target}", soft_wrap=True)


@data.command()
def drift(
    log: Annotated[Path, typer.Option(metavar="DIR", help="Folder of a server's request log.")],
    run: Annotated[str, typer.Option(help="The run that trained the model: its id, folder, or `latest`.")] = "latest",
    frame: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Training frame (frame.parquet), in place of the run's.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Only the requests of the last so many hours.", min=0.0)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 if a field is over a limit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the inputs of logged requests with the training rows, by the limits of the schema's `checks`.

    Example: `narrowcast data drift --log requests --run latest --hours 24`
    """
    from narrowcast.components.serve.request_log import logged_schema, logged_values, read_log
    from narrowcast.components.validate.drift import measure_drift_to

    path, schema = _frame_of(run) if frame is None else (frame, logged_schema(log))
    path = path / "frame.parquet" if path.is_dir() else path
    if not path.is_file():
        raise NarrowcastError(f"the training frame {path} does not exist: give it with --frame")
    since = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)
    num_requests = len(read_log(log, schema=schema, columns=["_version"], since=since))
    measured = track(
        measure_drift_to(path, lambda field: logged_values(log, field, schema=schema, since=since), schema),
        "measuring drift",
        total=len(schema.inputs),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    fields = list(measured)
    if as_json:
        print(json.dumps({"requests": num_requests, "fields": [asdict(field) for field in fields]}, indent=1))
    else:
        out.print(_drift_table(fields, f"{num_requests:,} requests"))
    over = [field.name for field in fields if not field.passed]
    if over and strict:
        raise NarrowcastError(
            f"drift of the requests is over the schema's limit in {', '.join(over)}: train on newer data, or raise "
            "checks.max_drift or checks.max_unseen in the schema"
        )


def _frame_of(run: str) -> "tuple[Path, Schema]":
    """A run's training frame and schema."""
    from narrowcast.components.data.schema import Schema
    from narrowcast.pipelines import parameters
    from narrowcast.pipelines.manifest import Run, find_run

    home = parameters.home_folder(Path.cwd()).resolve()
    made = Run.load(find_run(run, home))
    if "valid_frame" not in made.artifacts:
        raise NarrowcastError(f"run {made.run_id} ended before it had a training frame: name another with --run")
    return home / made.artifacts["valid_frame"]["path"], Schema.from_text(made.parameters["schema"])


def _drift_table(fields: "list[FieldDrift]", title: str) -> Table:
    table = Table("field", "type", "PSI", "limit", "KS", "unseen", "limit", "", title=title)
    for field in fields:
        unseen_limit = None if field.unseen_share is None else field.unseen_limit
        figures = (field.psi, field.limit, field.ks, field.unseen_share, unseen_limit)
        shown = ["" if figure is None else f"{figure:.3g}" for figure in figures]
        table.add_row(field.name, field.type, *shown, "[green]ok[/]" if field.passed else "[red]over[/]")
    return table
