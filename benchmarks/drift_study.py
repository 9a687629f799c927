"""Drift: AUC on every day after the training days, with and without daily retraining.

    python benchmarks/drift_study.py --seeds 3

Each model is trained on the first days of a time-ordered log. Without retraining that one model is tested on every
later day; with it, a model trained from scratch on all days before is tested on each day. Vocabularies and scales are
fitted anew for each training, on its own rows. The last 5 % of the rows before a day validate and are not trained on.
On the first later day both are one and the same model. AutoInt has the masked models' depth, heads and width.
Deviations are over seeds, which give the initial values and the row order; all models have the same data, width, hidden
layers and optimiser.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from chart import Line, line_chart
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data import prepare, prepare_schema
from narrowcast.components.data.encode import encode
from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.data.encoder import Encoder
from narrowcast.components.data.schema import SPLIT, TIMESTAMP, Schema
from narrowcast.components.data.synth import synth
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, deterministic, fit
from narrowcast.components.train.metrics import auc
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json, write_text, writing_directory

ATTENTION = {"num_layers": 2, "num_heads": 2, "attention_width": 16}
CONTROLS: dict[str, dict[str, Any]] = {
    "deepfm": {"backbone": "deepfm"},
    "dcnv2": {"backbone": "dcnv2"},
    "autoint": {"backbone": "autoint", "settings": ATTENTION},
}
MASKED: dict[str, dict[str, Any]] = {
    f"adrec {mask}": {"backbone": "adrec", "settings": {**ATTENTION, "mask": mask}}
    for mask in ("none", "causal", "learned", "topk")
}
MODELS = {**CONTROLS, **MASKED}
DAY_US = 86_400_000_000
VALIDATION_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """A time-ordered data set. Days begin at midnight, `hours_east` of UTC; the first `train_days` dates train.

    `epochs` and `batch_size` train about as long as validation gains. `drift`: of a synthetic log, the share of taste
    and popularity that has turned by its end.
    """

    name: str
    hours_east: int
    train_days: int
    epochs: int
    batch_size: int
    drift: float | None = None


LOGS = {
    log.name: log
    for log in (
        Log(name="kuairand_pure", hours_east=8, train_days=8, epochs=1, batch_size=512),
        Log(name="synthetic", hours_east=0, train_days=4, epochs=4, batch_size=256, drift=0.8),
        Log(name="synthetic_still", hours_east=0, train_days=4, epochs=4, batch_size=256, drift=0.0),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Train `model` on the data in `encoded`; its test rows' days are measured one by one."""

    log: str
    model: str
    retrained: bool
    encoded: Path
    config: TrainConfig
    width: int


def main() -> None:
    options = parsed()
    console = Console(stderr=True)
    jobs: list[Job] = []
    for name in options.data:
        with console.status(f"preparing {name}"), contextlib.redirect_stdout(io.StringIO()):
            frame = prepared_frame(LOGS[name], options)
            static, *daily = encoded_periods(LOGS[name], frame, options.days)
        for seed in range(options.seeds):
            for model in options.models:
                shared = {"log": name, "model": model, "config": train_config(LOGS[name], options, model, seed)}
                jobs.append(Job(**shared, retrained=False, encoded=static, width=options.width))
                jobs += [Job(**shared, retrained=True, encoded=folder, width=options.width) for folder in daily]
    measured = run(jobs, options.processes, console)
    results = {}
    for name in options.data:
        results[name] = summarise(name, options.models, options.seeds, measured)
        Console(width=140).print(table(name, results[name]))
        print(results[name]["verdict"] + "\n")
        if options.plot:
            plot(name, results[name], options.plot)
    left_out = ("out", "plot", "prepared", "raw", "processes")
    write_json(
        options.out,
        {"settings": {key: value for key, value in vars(options).items() if key not in left_out}, "data": results},
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=LOGS, default=["kuairand_pure", "synthetic"])
    parser.add_argument("--raw", type=Path, help="folder of KuaiRand-Pure's raw files, if it is not the usual one")
    parser.add_argument("--prepared", type=Path, default=Path(".narrowcast") / "benchmarks", help="keeps prepared data")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=int, default=99, help="most later days to test on")
    parser.add_argument("--rows", type=int, default=45_000, help="of a synthetic log")
    parser.add_argument("--width", type=int, default=16, help="embedding width D")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64], help="widths of the hidden layers")
    parser.add_argument("--epochs", type=int, help="at most; by default as the log needs")
    parser.add_argument("--batch-size", type=int, help="by default as the log needs")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings side by side, one thread each")
    parser.add_argument("--out", type=Path, default=Path("drift_study.json"), help="JSON to write")
    parser.add_argument("--plot", type=Path, help="folder for the charts, two SVG files a log")
    return parser.parse_args()


def train_config(log: Log, options: argparse.Namespace, model: str, seed: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(**MODELS[model], hidden=tuple(options.hidden)),
        epochs=options.epochs or log.epochs,
        batch_size=options.batch_size or log.batch_size,
        learning_rate=options.learning_rate,
        patience=options.epochs or log.epochs,
        seed=seed,
    )


def prepared_frame(log: Log, options: argparse.Namespace) -> Path:
    """The folder with the log's validated frame, `frame`; its trailing features count only what lies before a row."""
    if log.drift is None:
        return prepare(log.name, options.prepared, options.raw)
    folder = options.prepared / f"{log.name}_{options.rows}"
    if not (folder / "raw").is_dir():
        users, items = options.rows // 100, options.rows // 300
        synth(folder / "raw", rows=options.rows, users=users, items=items, drift=log.drift, days=10, history=False)
    if not (folder / "prepared").is_dir():
        prepare_schema(folder / "raw", Schema.load(folder / "raw" / "schema.yaml"), folder / "prepared")
    return folder / "prepared"


def encoded_periods(log: Log, prepared: Path, most_days: int) -> list[Path]:
    """Encoded data whose test rows are all later days, then for every later day but the first data whose test rows are
    that day's; each with the rows before as training and validation."""
    frame = pq.read_table(prepared / "frame" / "frame.parquet")
    schema = Encoder.load(prepared / "encoded" / "encoder").schema
    day_B = day_of(frame[TIMESTAMP].cast(pa.int64()).to_numpy(), log.hours_east)
    days = np.unique(day_B)
    if len(days) <= log.train_days:
        raise NarrowcastError(
            f"{log.name} has {len(days)} days: more than {log.train_days} are needed, those to train on"
        )
    later = days[log.train_days :][:most_days]
    target = prepared / f"periods_{log.train_days}_{len(later)}"
    periods = [("later", later), *((date(day), [day]) for day in later[1:])]
    if not target.is_dir():
        with writing_directory(target) as made:
            for name, tested in periods:
                split_B = np.select([day_B < tested[0], np.isin(day_B, tested)], ["train", "test"], "").astype(object)
                training = np.flatnonzero(split_B == "train")
                split_B[training[-max(1, int(VALIDATION_SHARE * len(training))) :]] = "validation"
                used = pa.array(split_B != "")
                period = frame.set_column(frame.column_names.index(SPLIT), SPLIT, pa.array(split_B)).filter(used)
                (made / name).mkdir()
                pq.write_table(period, made / name / "frame.parquet")
                encode(made / name, schema, made / name / "encoded")
                (made / name / "frame.parquet").unlink()
    return [target / name / "encoded" for name, _ in periods]


def run(jobs: list[Job], processes: int, console: Console) -> dict[tuple[str, str, bool, int], dict[str, float]]:
    """AUC by date, by log, model, whether it was retrained, and seed."""
    found: dict[tuple[str, str, bool, int], dict[str, float]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(auc_by_day, job): job for job in jobs}
        for future in track(as_completed(futures), "trainings", total=len(jobs), console=console):
            job = futures[future]
            found.setdefault((job.log, job.model, job.retrained, job.config.seed), {}).update(future.result())
    return found


def auc_by_day(job: Job) -> dict[str, float]:
    data = EncodedData(job.encoded)
    plan = full_plan(data.layout.table_rows, job.width)
    model = fit(data, plan, job.config, tell=lambda line: None).model
    test = data.split("test")
    with deterministic():
        probability_B = predict(model, test)
    day_B = day_of(np.asarray(test.time_B), LOGS[job.log].hours_east)
    return {date(day): auc(test.label_B[day_B == day], probability_B[day_B == day]) for day in np.unique(day_B)}


def summarise(
    log: str, models: list[str], num_seeds: int, measured: dict[tuple[str, str, bool, int], dict[str, float]]
) -> dict[str, Any]:
    """Figures by model, and the verdict.

    `static` and `retrained` hold AUC by day: `mean` and `sd` over seeds, and by seed. `lost` is what the static model
    lacks to the retrained one, by day. `slope` is the least-squares change of the static AUC a day; `against_controls`
    that of its difference to the controls' mean, in which a day's difficulty cancels, with its standard error `se`.
    """
    dates = sorted(measured[log, models[0], False, 0])
    figures: dict[str, dict[str, Any]] = {}
    for model in models:
        figures[model] = {}
        for mode, retrained in (("static", False), ("retrained", True)):
            by_seed = []
            for seed in range(num_seeds):
                auc_by_date = dict(measured[log, model, False, seed])
                if retrained:
                    auc_by_date |= measured.get((log, model, True, seed), {})
                by_seed.append([auc_by_date[day] for day in dates])
            figures[model][mode] = {**over_seeds(by_seed), "seeds": by_seed}
        old, new = figures[model]["static"]["mean"], figures[model]["retrained"]["mean"]
        figures[model]["lost"] = [later - earlier for later, earlier in zip(new, old, strict=True)]
        figures[model]["slope"], figures[model]["slope_se"] = slope(old)
    controls = [figures[model]["static"]["mean"] for model in models if model in CONTROLS]
    for model in models:
        if model in MASKED and controls:
            difference = np.array(figures[model]["static"]["mean"]) - np.mean(controls, axis=0)
            change, error = slope(difference)
            figures[model]["against_controls"] = {"slope": change, "se": error, "mean": float(difference.mean())}
    return {"dates": dates, "models": figures, "verdict": verdict(log, figures)}


def over_seeds(by_seed: list[list[float]]) -> dict[str, list[float]]:
    by_day = list(zip(*by_seed, strict=True))
    return {
        "mean": [mean(values) for values in by_day],
        "sd": [stdev(values) if len(values) > 1 else 0.0 for values in by_day],
    }


def slope(values: Iterable[float]) -> tuple[float, float | None]:
    """Least-squares change from one day to the next, and its standard error (None under three days)."""
    values = np.fromiter(values, float)
    day = np.arange(len(values)) - (len(values) - 1) / 2
    squares = float(day @ day) or 1.0
    change = float(day @ values) / squares
    if len(values) < 3:
        return change, None
    residuals = values - values.mean() - change * day
    return change, float(np.sqrt(residuals @ residuals / (len(values) - 2) / squares))


def verdict(log: str, figures: dict[str, dict[str, Any]]) -> str:
    """One sentence: whether the masked models keep more of their AUC, day by day, than the controls."""
    compared = {name: f["against_controls"] for name, f in figures.items() if "against_controls" in f}
    if not compared or any(f["se"] is None for f in compared.values()):
        return f"{log}: no verdict, which needs a masked model, a control and at least three later days."
    better = [name for name, f in compared.items() if f["slope"] > 2 * f["se"]]
    worse = [name for name, f in compared.items() if f["slope"] < -2 * f["se"]]
    told = ", ".join(f"{name} {f['slope']:+.5f} ({f['se']:.5f})" for name, f in compared.items())
    claims = [
        *([f"{' and '.join(better)} more robust to drift than the controls"] if better else []),
        *([f"{' and '.join(worse)} less robust"] if worse else []),
    ]
    answer = "; ".join(claims) or "no mask more or less robust to drift than the controls"
    control = mean(figures[name]["slope"] for name in figures if name in CONTROLS)
    return (
        f"{log}: without retraining the controls' AUC changes by {control:+.5f} a day, and relative to it by {told}; "
        f"beyond two standard errors that makes {answer}."
    )


def table(log: str, result: dict[str, Any]) -> Table:
    """The figures as Markdown."""
    first, last = result["dates"][0], result["dates"][-1]
    head = ("model", first, last, "all days", "change a day", "against controls", "retrained daily", "gain on last day")
    made = Table(
        *head, title=f"{log}: AUC, mean (deviation over seeds); slopes with their standard errors", box=MARKDOWN
    )
    for model, f in result["models"].items():
        static, relative = f["static"]["mean"], f.get("against_controls")
        made.add_row(
            model,
            f"{static[0]:.4f}",
            f"{static[-1]:.4f}",
            all_days(f["static"]["seeds"]),
            with_error(f["slope"], f["slope_se"]),
            with_error(relative["slope"], relative["se"]) if relative else "",
            all_days(f["retrained"]["seeds"]),
            f"{f['lost'][-1]:+.4f}",
        )
    return made


def with_error(value: float, error: float | None) -> str:
    return f"{value:+.5f}" if error is None else f"{value:+.5f} ({error:.5f})"


def all_days(by_seed: list[list[float]]) -> str:
    means = [mean(days) for days in by_seed]
    return f"{mean(means):.4f} ({stdev(means) if len(means) > 1 else 0.0:.4f})"


def plot(log: str, result: dict[str, Any], folder: Path) -> None:
    """`drift_<log>_static.svg` and `drift_<log>_retrained.svg`; bars are deviations over seeds."""
    for mode, words in (("static", "without retraining"), ("retrained", "retrained daily")):
        lines = [
            Line(name=model, points=list(enumerate(f[mode]["mean"], 1)), errors=f[mode]["sd"])
            for model, f in result["models"].items()
        ]
        drawn = line_chart(
            lines,
            title=f"AUC {words}",
            x_title="day after the training days" if mode == "static" else "day",
            label=f"{log}: AUC by day {words}, {', '.join(result['models'])}",
        )
        write_text(folder / f"drift_{log}_{mode}.svg", drawn)


def day_of(time_us: NDArray[np.int64], hours_east: int) -> NDArray[np.int64]:
    """Days since 1970 of times in microseconds, UTC, counted at a place `hours_east` of UTC."""
    return (time_us + hours_east * DAY_US // 24) // DAY_US


def date(day: int) -> str:
    return str(np.datetime64(int(day), "D"))


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
