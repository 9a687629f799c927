"""Latency percentiles of a running server against offered load.

    python benchmarks/offered_load.py --url http://127.0.0.1:8080 --packed PACKED_MODEL --rates 25 50 100 200

Sends the packed model's sample request at times drawn beforehand, whatever the answers do, and counts latency from
those times. Ends at the first rate that the server does not keep up with.
"""

import argparse
import json
from pathlib import Path
from urllib.parse import urlsplit

from libraries import machine
from load.generator import run
from load.http1 import request_bytes
from load.sweep import as_json, chart, sweep, table
from rich.console import Console

from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--url", required=True, help="of the server, as http://host:port")
    parser.add_argument("--packed", type=Path, required=True, help="packed model whose sample request is sent")
    parser.add_argument("--model", help="name in the address; the schema's name if left out")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 20, 50, 100, 200, 500], help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, help="of load at each rate")
    parser.add_argument("--evenly", action="store_true", help="equal times between requests instead of random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("offered_load.json"), help="JSON to write")
    parser.add_argument("--chart", type=Path, help="SVG to write")
    options = parser.parse_args()
    if urlsplit(options.url).scheme != "http" or not urlsplit(options.url).port:
        raise NarrowcastError(f"--url is '{options.url}': give it as http://host:port")
    name = options.model or read_json(options.packed / "manifest.json")["schema"]
    body = json.dumps(read_json(options.packed / "sample_request.json")["request"]).encode()
    request = request_bytes("POST", options.url, f"/v2/models/{name}/infer", body, {"Content-Type": "application/json"})
    console = Console()
    with console.status("") as status:
        found = run(
            sweep(
                options.url,
                lambda index: request,
                sorted(options.rates),
                options.seconds,
                seed=options.seed,
                evenly=options.evenly,
                tell=lambda summary: status.update(f"{summary.offered_rate:.0f}/s: p99 {summary.p99:.1f} ms"),
            )
        )
    console.print(table(f"{name}, {options.seconds:g} s at each rate", found))
    settings = {"rates": options.rates, "seconds": options.seconds, "evenly": options.evenly, "seed": options.seed}
    write_json(options.out, {"machine": machine(), "settings": settings, "loads": as_json(found)})
    if options.chart:
        write_text(options.chart, chart({"": found}))


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
