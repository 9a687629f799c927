"""A checkout of its own for every end-to-end test, as a newcomer's would be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Checkout:
    """A Git and DVC checkout with commands to run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {k: v for k, v in os.environ.items() if k != "NARROWCAST_HOME"} | {"PATH": path, "COLUMNS": "200"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def narrowcast(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("narrowcast", *arguments, check=check)

    def set_parameters(self, **values: str) -> None:
        """Change params.yaml itself, one line a parameter."""
        path = self.folder / "params.yaml"
        lines = path.read_text().splitlines()
        for name, value in values.items():
            found = [i for i, line in enumerate(lines) if line.startswith(f"{name}:")]
            assert len(found) == 1, name
            lines[found[0]] = f"{name}: {value}"
        path.write_text("\n".join(lines) + "\n")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)


def new_checkout(folder: Path) -> Checkout:
    """The working tree's files, committed anew."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if not (source.is_symlink() or source.is_file()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.readlink()) if source.is_symlink() else target.write_bytes(source.read_bytes())
    checkout = Checkout(folder)
    checkout.run("git", "init", "-q", "-b", "main")
    checkout.run("git", "config", "user.name", "Test")
    checkout.run("git", "config", "user.email", "test@example.invalid")
    checkout.commit("start")
    return checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = new_checkout(tmp_path_factory.mktemp("checkout"))
    yield made
    made.narrowcast("serve", "--stop", "default", check=False)
