"""The `narrowcast` command. Each verb imports its work when it is called, so that --help is quick."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from narrowcast import __version__
from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import cluster_cli
from narrowcast.pipelines.data_cli import data
from narrowcast.pipelines.options import Json, Params, Set, changes

app = typer.Typer(
    help="From versioned clicks to the smallest click model that keeps its quality, validated, searched and serving.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")
CLUSTER = "On a cluster"
app.add_typer(cluster_cli.schedule, name="schedule", rich_help_panel=CLUSTER)
for verb in (cluster_cli.submit, cluster_cli.status, cluster_cli.logs, cluster_cli.cancel):
    app.command(rich_help_panel=CLUSTER)(verb)

Endpoint = Annotated[str, typer.Option(help="Name of the endpoint.")]

out = Console()
note = Console(stderr=True)


def _version(show: bool) -> None:
    if show:
        out.print(f"narrowcast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    params: Params = Path("params.yaml"),
    set_: Set = None,
    schema: Annotated[str | None, typer.Option(help="Schema file or shipped name, in place of the parameter.")] = None,
    data: Annotated[Path | None, typer.Option(help="Raw data to snapshot first, below the checkout.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, even those done before.")] = False,
    no_deploy: Annotated[bool, typer.Option("--no-deploy", help="Leave the endpoint alone.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole DAG on this machine and deploy the compact model if every gate passes.

    Example: `narrowcast run --set epochs=3 --set budget=200KB`

    Example: `narrowcast run --schema my.yaml --data data/raw/my`
    """
    from narrowcast.components.data.schema import Schema
    from narrowcast.components.data.versions import recorded_version, snapshot
    from narrowcast.pipelines import parameters
    from narrowcast.pipelines.run import run as work
    from narrowcast.records import read_json

    root = Path.cwd()
    changed = changes(set_)
    if schema:
        changed["schema"] = schema
    if data:
        changed["data_version"] = snapshot(data)
    elif schema and "data_version" not in changed:
        changed["data_version"] = recorded_version(root / "data" / "raw" / Schema.load(schema).name)
    if no_deploy:
        changed["endpoint"] = ""
    made = work(parameters.load(params, changed), root=root, console=note, use_cache=not no_cache)
    home = parameters.home_folder(root).resolve()
    report = home / "runs" / made.run_id / "report.html"
    if as_json:
        print(json.dumps({**asdict(made), "report": str(report)}, indent=1))
        return
    from narrowcast.components.report.terminal import run_summary

    folder = {name: home / entry["path"] for name, entry in made.artifacts.items()}
    evaluation = read_json(folder["evaluation"] / "evaluation.json")
    deployment = read_json(folder["deployment"] / "deployment.json")
    out.print(run_summary(evaluation, deployment, made.steps["ingest"]["rows_in"], made.data_version, str(report)))
    if deployment.get("url"):
        out.print(
            f"ask it: [bold]narrowcast rank --user USER --candidates ITEM,ITEM --endpoint {deployment['endpoint']}[/]"
        )


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="Run id, run folder, run.json, or `latest`.")],
    remote: Annotated[str, typer.Option(help="DVC remote that holds the data; default: the checkout's own.")] = "",
    as_json: Json = False,
) -> None:
    """Make a run again from its manifest and the DVC remote, and compare every artifact's md5.

    Example: `narrowcast reproduce latest`
    """
    from narrowcast.pipelines.run import comparison
    from narrowcast.pipelines.run import reproduce as work

    compared = work(run, root=Path.cwd(), remote=remote, console=note)
    if as_json:
        print(json.dumps({name: {"run": a, "now": b, "same": a == b} for name, (a, b) in compared.items()}, indent=1))
    else:
        out.print(comparison(compared))
    different = [name for name, (before, now) in compared.items() if before != now]
    if different:
        raise NarrowcastError(f"{different[0]} differs from the run's: see which library or processor changed, above")


@app.command()
def step(
    name: Annotated[str, typer.Argument(help="Step to run.")],
    params: Params = Path("params.yaml"),
    set_: Set = None,
    folder: Annotated[Path, typer.Option(help="Folder of the artifacts.")] = Path("artifacts"),
) -> None:
    """Run one step here, on the artifacts of the steps before it; `dvc repro` calls this.

    Example: `narrowcast step encode`
    """
    from narrowcast.pipelines import graph, parameters
    from narrowcast.pipelines.run import champion_folder

    graph.step(name)
    root = Path.cwd()
    values = parameters.load(params, changes(set_))
    home = parameters.home_folder(root).resolve()
    champion = champion_folder(home, values["endpoint"]) if name == "evaluate" else ""
    graph.call(name, parameters.complete(values, home=str(home), root=root, champion=champion), folder)


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", help="Package to write.")] = Path("training.yaml"),
    params: Params = Path("params.yaml"),
    set_: Set = None,
    dvc: Annotated[bool, typer.Option("--dvc", help="Write dvc.yaml in place of the package.")] = False,
) -> None:
    """Compile the pipeline to the package that Kubeflow Pipelines runs, placed as params.yaml says, or to dvc.yaml.

    Example: `narrowcast compile -o training.yaml --set cluster.image=registry.example.com/narrowcast:0.1.0`
    """
    if dvc:
        if set_:
            raise NarrowcastError("--set changes the package, and dvc.yaml holds no value: leave --dvc or --set out")
        from narrowcast.pipelines.dvc_file import dvc_yaml
        from narrowcast.records import write_text

        write_text("dvc.yaml", dvc_yaml())
        out.print("wrote dvc.yaml")
        return
    from narrowcast.pipelines import cluster_settings
    from narrowcast.pipelines.placement import write_package

    write_package(cluster_settings.load(params, changes(set_)), output)
    out.print(f"wrote {output}")


@app.command()
def methods(as_json: Json = False) -> None:
    """List the backbones, the history encoders and the search methods, each with its source.

    Example: `narrowcast methods`
    """
    from narrowcast.components.search.registry import describe_methods
    from narrowcast.components.train.heads import describe_backbones
    from narrowcast.components.train.histories import describe_histories

    found = {
        "backbone": describe_backbones(),
        "history": describe_histories(),
        "search method": describe_methods(),
    }
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("kind", "name", "what it is")
    for kind, rows in found.items():
        for name, summary in rows.items():
            table.add_row(kind, name, summary)
    out.print(table)


@app.command()
def serve(
    model: Annotated[Path | None, typer.Argument(help="Packed model to serve in the foreground.")] = None,
    store: Annotated[Path | None, typer.Option(help="Feature store folder of the model's run.")] = None,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int | None, typer.Option(help="Serve gRPC too, on this port.")] = None,
    request_log: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Log requests there, for `narrowcast data drift`.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="List the endpoints.")] = False,
    stop: Annotated[str | None, typer.Option(metavar="ENDPOINT", help="Stop an endpoint's server.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a packed model in the foreground, or look after the endpoints that runs deployed.

    Example: `narrowcast serve MODEL --store STORE --port 8080`

    Example: `narrowcast serve --status`
    """
    from narrowcast.pipelines import parameters

    home = parameters.home_folder(Path.cwd()).resolve()
    if stop is not None:
        from narrowcast.components.serve.deploy import stop as stop_endpoint

        out.print(f"stopped {stop_endpoint(stop, home)['url']}")
        return
    if status:
        from narrowcast.components.serve.deploy import status as endpoints

        rows = endpoints(home)
        if as_json:
            print(json.dumps(rows, indent=1))
            return
        table = Table("endpoint", "model", "url", "answers")
        for row in rows:
            table.add_row(row["endpoint"], row["model"], row["url"], "yes" if row["alive"] else "[red]no[/]")
        out.print(table)
        return
    if as_json:
        raise NarrowcastError("--json goes with --status")
    if model is None or store is None:
        raise NarrowcastError(
            "give a packed model and --store, or --status, or --stop ENDPOINT; see `narrowcast serve --help`"
        )
    command = ["--model", str(model), "--store", str(store), "--port", str(port), "--host", host]
    command += ["--grpc-port", str(grpc_port)] if grpc_port is not None else []
    command += ["--request-log", str(request_log)] if request_log else []
    os.execv(sys.executable, [sys.executable, "-m", "narrowcast.components.serve.server", *command])


@app.command()
def rank(
    user: Annotated[str, typer.Option(help="User id, as in the raw data.")],
    candidates: Annotated[str, typer.Option(help="Item ids, separated by commas, or @FILE with one a line.")],
    context: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A context field; repeatable.")
    ] = None,
    endpoint: Endpoint = "default",
    as_json: Json = False,
) -> None:
    """Ask an endpoint to rank candidates for a user.

    Example: `narrowcast rank --user 196 --candidates 242,302,377`
    """
    from narrowcast.components.serve.rank import ranking
    from narrowcast.pipelines import parameters

    if candidates.startswith("@"):
        path = Path(candidates[1:])
        if not path.is_file():
            raise NarrowcastError(f"--candidates {candidates}: no such file")
        items = path.read_text().split()
    else:
        items = [item.strip() for item in candidates.split(",") if item.strip()]
    home = parameters.home_folder(Path.cwd()).resolve()
    found = ranking(user, items, endpoint=endpoint, home=home, context=changes(context))
    if as_json:
        print(json.dumps([{"item": item, "probability": probability} for item, probability in found.items], indent=1))
        return
    table = Table("rank", "item", "probability of a click", title=f"user {user}")
    for i, (item, probability) in enumerate(found.items, 1):
        table.add_row(str(i), item, f"{probability:.4f}")
    out.print(table)
    unknown = [f"user {user}"] * found.unknown_user + [f"item {item}" for item in found.unknown_items]
    if unknown:
        note.print(f"never seen in training, ranked by what is known of them: {', '.join(unknown)}", soft_wrap=True)
    if found.fallbacks:
        note.print(f"the feature store did not answer in time for: {', '.join(found.fallbacks)}; defaults stood for it")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="RUN|DIR", help="Run id, `latest`, or a packed model's folder.")],
    target: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    as_json: Json = False,
) -> None:
    """Export a packed model to ONNX, its tables still quantised, and check its scores in ONNX Runtime.

    Example: `narrowcast export latest --out exported`
    """
    from narrowcast.pipelines import parameters
    from narrowcast.pipelines.manifest import artifact_folder

    packed = Path(model)
    if not (packed / "tables.safetensors").is_file():
        packed = artifact_folder(model, "packed_model", parameters.home_folder(Path.cwd()).resolve())
    from narrowcast.components.compact.export import export as work
    from narrowcast.components.compact.export import snippet

    made = work(packed, target, say=note.print)
    if as_json:
        print(json.dumps(made, indent=1))
        return
    parity = made["parity"]
    out.print(f"wrote {target}: {made['graph_bytes']} bytes, of which tables {made['table_bytes']}", soft_wrap=True)
    out.print(
        f"largest difference in probability from the packed model: {parity['max_difference']:.1e} on {parity['rows']} "
        "random rows",
        soft_wrap=True,
    )
    out.print(f"to score without narrowcast:\n\n{snippet(target)}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that this machine and checkout can run the DAG, and say how to mend what cannot.

    Example: `narrowcast doctor`
    """
    from narrowcast.pipelines.doctor import checks

    found = checks(Path.cwd())
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    else:
        table = Table("check", "", "found")
        for check in found:
            table.add_row(check.name, "[green]ok[/]" if check.passed else "[red]mend[/]", check.found)
        out.print(table)
    bad = [check for check in found if not check.passed]
    if bad:
        raise NarrowcastError(f"{bad[0].name}: {bad[0].found}")


def main() -> None:
    """Entry point: a NarrowcastError, or a file that the system refuses, is one sentence and status 1."""
    try:
        app(standalone_mode=True)
    except NarrowcastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
