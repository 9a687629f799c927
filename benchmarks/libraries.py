"""The libraries that are compared, each run in a process of its own, the peers in their own environment.

The peers' environment, once (FuxiCTR and DeepCTR-Torch pin nothing, so its versions lie in requirements.txt):

    python -m venv PEERS && PEERS/bin/pip install -r benchmarks/peers/requirements.txt

and then `--peers-python PEERS/bin/python`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from narrowcast.errors import NarrowcastError

SCRIPTS = {"narrowcast": "narrowcast_run.py", "fuxictr": "peers/fuxictr_run.py", "deepctr": "peers/deepctr_run.py"}
TITLES = {"narrowcast": "narrowcast", "fuxictr": "FuxiCTR", "deepctr": "DeepCTR-Torch"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which libraries, where the peers are, and the model and batch that all of them train."""
    parser.add_argument("--libraries", nargs="+", choices=tuple(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--peers-python", type=Path, help="python of the environment that has the peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every library")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400], help="widths of the hidden layers")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="Adam's")


def run(library: str, encoded: Path, chosen: argparse.Namespace, extra: Sequence[object] = ()) -> dict[str, Any]:
    """Train with `library` in a process of its own; what its script answers (see `peers/side.py`).

    Raises NarrowcastError with the process's last words where it fails.
    """
    if library != "narrowcast" and not chosen.peers_python:
        raise NarrowcastError(f"{TITLES[library]} needs --peers-python, or leave it out of --libraries")
    python = sys.executable if library == "narrowcast" else chosen.peers_python
    shared = {"width": chosen.width, "batch-size": chosen.batch_size, "learning-rate": chosen.learning_rate}
    command = [python, Path(__file__).parent / SCRIPTS[library], encoded, "--threads", chosen.threads]
    command += ["--hidden", *chosen.hidden, *(part for name, value in shared.items() for part in (f"--{name}", value))]
    done = subprocess.run(
        [str(part) for part in (*command, *extra)],
        env={**os.environ, "OMP_NUM_THREADS": str(chosen.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NarrowcastError(f"{TITLES[library]} failed: {' '.join(done.stderr.strip().splitlines()[-3:])[-500:]}")
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"library"')]
    result: dict[str, Any] = json.loads(answers[-1])
    return result


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on, for the JSON: the options but paths."""
    return {name: value for name, value in vars(chosen).items() if not isinstance(value, Path | None)}


def machine() -> dict[str, Any]:
    """What the figures were measured on, for the JSON."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {"processor": models[0] if models else "unknown", "cores": os.cpu_count()}
