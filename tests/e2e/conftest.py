"""A checkout of its own for every end-to-end test, as a newcomer's would be."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"num_workers": "0", "epochs": "2", "num_trials": "1", "batch_size": "256", "width": "8", "budget": "1/4"}


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


def write_shop(path: Path, rows: int = 3000, seed: int = 3) -> None:
    """A shop's click log as its owner would export it: one CSV, names of their own."""
    rng = np.random.default_rng(seed)
    shoppers, products = 80, 50
    shopper, product = rng.integers(0, shoppers, rows), np.minimum(rng.zipf(1.2, rows) - 1, products - 1)
    taste, shelf = rng.normal(0, 1.5, (shoppers, 4)), rng.integers(0, 4, products)
    bought = rng.random(rows) < 1 / (1 + np.exp(-(taste[shopper, shelf[product]] - 0.3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "shopper": [f"s{u}" for u in shopper],
            "sku": [f"p{i}" for i in product],
            "shelf": [f"shelf {shelf[i]}" for i in product],
            "at": pd.Timestamp("2024-03-01") + pd.to_timedelta(np.sort(rng.integers(0, 30 * 86400, rows)), unit="s"),
            "channel": rng.choice(["web", "app"], rows),
            "basket": rng.lognormal(2, 1, rows).round(2),
            "bought": bought.astype(int),
            "refunded": (bought & (rng.random(rows) < 0.05)).astype(int),
        }
    ).to_csv(path, index=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = new_checkout(tmp_path_factory.mktemp("checkout"))
    yield made
    made.narrowcast("serve", "--stop", "default", check=False)
