"""`narrowcast data`: get, describe, synthesise and version raw data."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from narrowcast.records import write_text

data = typer.Typer(help="Get, describe, synthesise and version raw data.", no_args_is_help=True)
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

    Example: `narrowcast data snapshot data/raw/ml_100k`
    """
    from narrowcast.components.data.versions import snapshot as work

    print(work(folder, commit=commit))


@data.command()
def checkout(
    version: Annotated[str, typer.Argument(help="md5 that `snapshot` printed.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    remote: Annotated[str, typer.Option(help="DVC remote; default: the checkout's own.")] = "",
) -> None:
    """Fetch one version of raw data from the DVC remote; needs no Git.

    Example: `narrowcast data checkout 1f0a...dir data/raw/old`
    """
    from narrowcast.components.data.versions import checkout as work
    from narrowcast.pipelines.parameters import remote_address

    work(version, remote_address(remote, Path.cwd()), target)
    out.print(f"version {version} lies in {target}", soft_wrap=True)
