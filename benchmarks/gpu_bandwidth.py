"""Rows per second of a training step beside the floor that the memory's bandwidth sets.

    python benchmarks/gpu_bandwidth.py --device cuda --rows 10000000

The floor counts what the tables alone must move, float32: every id looked up is read with its row, and its gradient
written and read once; every distinct id's row and optimiser state are read and written. The bandwidth is that of a copy
on the same device, reads and writes counted. Ids are uniform over the tables, the hardest case for a cache; the step is
the whole one, head included, on a batch that lies on the device.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from libraries import machine, settings
from options import markdown
from torch import nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, optimisers
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.optimisers import TABLE_OPTIMISERS
from narrowcast.components.train.plan import full_plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

STATE_FLOATS = {"rowwise_adagrad": lambda width: 1, "lazy_adam": lambda width: 2 * width}
"""Floats of optimiser state a table's row, by its width."""


def seconds_of(work, device: torch.device, repeats: int) -> float:
    """Median seconds, after three unmeasured goes."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repeats + 3):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return median(times[3:])


def copy_bandwidth(device: torch.device, num_bytes: int, repeats: int) -> float:
    """Bytes read and written a second by a copy of `num_bytes`."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds_of(lambda: target.copy_(source), device, repeats)


def moved_bytes(ids_BF: torch.Tensor, width: int, optimiser: str) -> int:
    """What one step must move for the tables."""
    distinct = sum(len(column.unique()) for column in ids_BF.unbind(1))
    looked_up = ids_BF.numel() * (ids_BF.element_size() + 3 * 4 * width)
    return looked_up + distinct * 2 * 4 * (width + STATE_FLOATS[optimiser](width))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of all tables together")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--copy-bytes", type=int, default=2**28)
    parser.add_argument("--out", type=Path, default=Path("gpu_bandwidth.json"), help="JSON to write")
    options = parser.parse_args()
    device = torch.device(options.device)
    names = tuple(f"field{i}" for i in range(options.fields))
    rows = options.rows // options.fields
    layout = Layout(
        categorical=names,
        numeric=(),
        sequences=(),
        table_of={name: name for name in names},
        table_rows=dict.fromkeys(names, rows),
    )
    generator = torch.Generator().manual_seed(0)
    ids_BF = torch.randint(0, rows, (options.batch_size, options.fields), generator=generator, dtype=torch.int32)
    ids_BF = ids_BF.to(device)
    dense_BN = torch.zeros(options.batch_size, 0, device=device)
    label_B = torch.randint(0, 2, (options.batch_size,), generator=generator).float().to(device)
    bandwidth = copy_bandwidth(device, options.copy_bytes, options.repeats)
    results = []
    for name in TABLE_OPTIMISERS:
        config = TrainConfig(
            model=ModelConfig(backbone=options.backbone, hidden=tuple(options.hidden)), table_optimiser=name
        )
        model = CTRModel(layout, full_plan(layout.table_rows, options.width), config.model, seed=0).to(device)
        moving = optimisers(model, config)

        def step(model=model, moving=moving) -> None:
            moving.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(ids_BF, dense_BN, {}), label_B).backward()
            moving.step()

        seconds = seconds_of(step, device, options.repeats)
        bytes_a_step = moved_bytes(ids_BF, options.width, name)
        results.append(
            {
                "optimiser": name,
                "bytes_per_row": bytes_a_step / options.batch_size,
                "rows_per_second": options.batch_size / seconds,
                "floor_rows_per_second": bandwidth * options.batch_size / bytes_a_step,
                "share_of_floor": bytes_a_step / bandwidth / seconds,
            }
        )
    print(f"{device}: a copy moves {bandwidth / 1e9:.1f} GB/s\n")
    lines = [
        [
            result["optimiser"],
            f"{result['bytes_per_row']:,.0f}",
            f"{result['rows_per_second']:,.0f}",
            f"{result['floor_rows_per_second']:,.0f}",
            f"{result['share_of_floor']:.3f}",
        ]
        for result in results
    ]
    print(markdown(["optimiser", "bytes a row", "rows/s", "rows/s at the bandwidth", "ratio"], lines))
    found = {"bytes_per_second": bandwidth, "results": results}
    write_json(options.out, {"machine": machine(), "settings": settings(options), **found})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
