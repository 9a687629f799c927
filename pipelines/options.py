"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.errors import NarrowcastError

Params = Annotated[Path, typer.Option("--params", help="Parameter file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-S", metavar="NAME=VALUE", help="Change one parameter; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def changes(given: list[str] | None) -> dict[str, str]:
    """What `--set` gave, by name."""
    found: dict[str, str] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise NarrowcastError(f"--set {item}: write it as NAME=VALUE, such as --set epochs=3")
        found[name.strip()] = value.strip()
    return found
