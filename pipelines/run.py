"""One run from parameters to manifest, and the same run again."""

import hashlib
import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import manifest, parameters
from narrowcast.pipelines.local import LocalRun, code_digest, run_locally
from narrowcast.records import digest, read_json, write_json


def run(values: dict[str, Any], *, root: Path, console: Console, use_cache: bool = True) -> manifest.Run:
    """Run the training pipeline on this machine and write its manifest. `values` as `parameters.load` gives them.

    Raises NarrowcastError with the failed step's sentence, after the manifest of the failed run is written; and before
    any step for parameters that no data could make right. `latest:<name>` becomes the version that it means now, so
    that the cache and the manifest know the run by its data.
    """
    from narrowcast.components.data.versions import resolved

    parameters.refuse_early(values)
    home = parameters.home_folder(root).resolve()
    arguments = parameters.complete(values, home=str(home), root=root)
    arguments["data_version"] = resolved(arguments["data_version"], arguments["data_remote"])
    arguments["champion"] = _champion(arguments, home)
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = home / "runs" / run_id
    console.print(
        f"run [bold]{run_id}[/], data version {arguments['data_version']}, steps log to {folder / 'steps.log'}",
        soft_wrap=True,
    )
    clock = time.monotonic()
    done = run_locally(arguments, home=home, log_path=folder / "steps.log", use_cache=use_cache)
    made = _manifest(
        done, arguments, run_id=run_id, started=started, seconds=time.monotonic() - clock, root=root, home=home
    )
    if done.artifacts:
        manifest.keep(done.artifacts["page"], folder / "report.html")
    made.save(folder / "run.json")
    if done.error:
        raise NarrowcastError(f"{done.error} (run {run_id})")
    return made


def _manifest(
    done: LocalRun, arguments: dict[str, Any], *, run_id: str, started: datetime, seconds: float, root: Path, home: Path
) -> manifest.Run:
    lock = root / "requirements.lock"
    evaluation = done.artifacts.get("evaluation")
    return manifest.Run(
        run_id=run_id,
        status="failed" if done.error else "succeeded",
        error=done.error,
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        git_commit=arguments["git_commit"],
        code=done.code,
        lock=digest(lock) if lock.is_file() else None,
        data_version=arguments["data_version"],
        parameters={k: v for k, v in sorted(arguments.items()) if k not in manifest.PLACES},
        machine=manifest.machine(),
        artifacts=manifest.describe_artifacts(done.artifacts, home),
        steps=manifest.describe_steps(done.states, done.artifacts),
        metrics=read_json(evaluation / "metrics.json") if evaluation else {},
    )


def _champion(arguments: dict[str, Any], home: Path) -> str:
    """Folder of the model that the endpoint serves, to be judged against; empty when there is none.

    The same parameters meet the same champion again, though their own model may serve by now: so a repeated run finds
    its evaluation in the cache.
    """
    same = {k: v for k, v in arguments.items() if k not in manifest.PLACES} | {"code": code_digest()}
    key = hashlib.md5(json.dumps(same, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    book = home / "runs" / "judged-against.json"
    judged: dict[str, str] = read_json(book) if book.is_file() else {}
    if key not in judged or (judged[key] and not Path(judged[key]).is_dir()):
        judged[key] = champion_folder(home, arguments["endpoint"])
        write_json(book, judged)
    return judged[key]


def champion_folder(home: Path, endpoint: str) -> str:
    """Folder of the packed model that the endpoint serves, or empty."""
    from narrowcast.components.serve.deploy import champion_path

    return str(champion_path(home, endpoint) or "") if endpoint else ""


def reproduce(name: str, *, root: Path, remote: str, console: Console) -> dict[str, tuple[str, str]]:
    """Make a run again from its manifest and the DVC remote, without the cache and without deploying.

    Returns, by artifact, the manifest's md5 and the one found now. Raises NarrowcastError when this checkout is not the
    code of the run.
    """
    home = parameters.home_folder(root).resolve()
    path = manifest.find_run(name, home)
    before = manifest.Run.load(path)
    if before.status != "succeeded":
        raise NarrowcastError(f"run {before.run_id} failed ({before.error}): there is no result to reproduce")
    if before.code != code_digest():
        raise NarrowcastError(
            f"run {before.run_id} was made by other code (commit {before.git_commit}): "
            f"`git checkout {before.git_commit.removesuffix('+changes')}`, then reproduce it again"
        )
    found = manifest.machine()["libraries"]
    for library, version in before.machine["libraries"].items():
        if found.get(library) != version:
            console.print(f"warning: the run used {library} {version}, here is {found.get(library)}: bits may differ")
    arguments = {
        **before.parameters,
        "endpoint": "",
        "champion": "",
        "home": str(home),
        "git_commit": parameters.git_commit(root),
        "data_remote": remote or parameters.remote_address("", root),
    }
    folder = home / "reproduced" / before.run_id
    done = run_locally(arguments, home=home, log_path=folder / "steps.log", use_cache=False)
    if done.error:
        raise NarrowcastError(f"reproducing {before.run_id}: {done.error}")
    now = manifest.describe_artifacts(done.artifacts, home)
    return {
        name: (entry["md5"], now[name]["md5"])
        for name, entry in before.artifacts.items()
        if name not in manifest.NOT_REPRODUCED
    }


def comparison(compared: dict[str, tuple[str, str]]) -> Table:
    """The artifacts of a reproduced run beside the manifest's."""
    table = Table("artifact", "md5 of the run", "md5 now", "")
    for name, (before, now) in compared.items():
        table.add_row(name, before, now, "[green]same[/]" if before == now else "[red]differs[/]")
    return table
