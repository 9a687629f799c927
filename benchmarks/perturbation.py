"""What an ensemble of perturbed weights gives: logloss, calibration and AUC on test, over seeds.

    python benchmarks/perturbation.py --seeds 5

A model is trained as ever; its ensemble's scale is then chosen on validation (components/train/perturbation.py), and so
is the temperature of the control, which divides the one model's logits (Guo et al. 2017, arXiv 1706.04599, section 4.2)
and costs nothing a request. The table reads test.
"""

import math
from statistics import mean, stdev

import numpy as np
from options import markdown, parser, prepare_all, settings, train_config
from rich.console import Console

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import fit
from narrowcast.components.train.metrics import all_metrics, calibration_curve, logloss
from narrowcast.components.train.perturbation import best_ensemble, golden_section
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict
from narrowcast.errors import NarrowcastError
from narrowcast.records import write_json

FIGURES = ("logloss", "calibration", "calibration_error", "auc")


def figures(split, probability_B) -> dict[str, float]:
    """Every metric, and the mean distance of predicted from observed click rate in ten bins of equal counts."""
    bins = calibration_curve(split.label_B, probability_B)
    error = sum(abs(b["predicted"] - b["observed"]) * b["rows"] for b in bins) / len(split)
    return {**all_metrics(split.label_B, probability_B, split.group_B), "calibration_error": error}


def cooled(probability_B, temperature: float):
    """The probabilities of the logits divided by `temperature`."""
    probability_B = np.clip(np.asarray(probability_B, np.float64), 1e-7, 1 - 1e-7)
    return 1 / (1 + np.exp(-np.log(probability_B / (1 - probability_B)) / temperature))


def best_temperature(split, probability_B) -> float:
    def loss(log_temperature: float) -> float:
        return logloss(split.label_B, cooled(probability_B, math.exp(log_temperature)))

    return math.exp(golden_section(loss, -1.5, 1.5, 30)[0])


def measure(data: EncodedData, options, seed: int) -> dict:
    """One seed's figures on test: the model's, its ensemble's, and with a temperature."""
    config = train_config(options, ModelConfig(backbone=options.backbone, hidden=tuple(options.hidden)), seed)
    plan = full_plan(data.layout.table_rows, options.width)
    model = fit(data, plan, config, tell=lambda line: None).model
    validation, test = data.split("validation"), data.split("test")
    ensemble = best_ensemble(model, validation, members=options.members, seed=seed)
    temperature = best_temperature(validation, predict(model, validation))
    return {
        "seed": seed,
        "scale": ensemble.scale,
        "temperature": temperature,
        "model": figures(test, predict(model, test)),
        "ensemble": figures(test, ensemble.predict(model, test)),
        "with temperature": figures(test, cooled(predict(model, test), temperature)),
    }


def table(rows: list[dict]) -> str:
    """Mean (deviation) over the seeds, and how often the ensemble has the lower logloss."""
    lines = []
    for kind in ("model", "ensemble", "with temperature"):
        cells = [spread([row[kind][name] for row in rows]) for name in FIGURES]
        gains = [row["model"]["logloss"] - row[kind]["logloss"] for row in rows]
        won = "" if kind == "model" else f"{spread(gains, '+.5f')}, {sum(gain > 0 for gain in gains)} of {len(gains)}"
        chosen = {"ensemble": "scale", "with temperature": "temperature"}.get(kind)
        lines.append([kind, *cells, won, spread([row[chosen] for row in rows]) if chosen else ""])
    return markdown(
        ["", "logloss", "predicted over observed", "calibration error", "AUC", "logloss gained, seeds", "chosen"], lines
    )


def spread(values: list[float], form: str = ".4f") -> str:
    return f"{mean(values):{form}} ({stdev(values) if len(values) > 1 else 0.0:{form.lstrip('+')}})"


def main() -> None:
    made = parser(
        __doc__.split("\n")[0], data=["ml_100k", "kuairand_pure"], epochs=6, patience=2, out="perturbation.json"
    )
    made.add_argument("--backbone", default="deepfm")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--members", type=int, default=10, help="perturbed models an ensemble averages; even")
    options = made.parse_args()
    console = Console(stderr=True)
    results = {}
    for name, folder in prepare_all(options, console).items():
        data = EncodedData(folder / "encoded")
        results[name] = []
        for seed in range(options.seeds):
            with console.status(f"{name}, seed {seed}"):
                results[name].append(measure(data, options, seed))
        print(f"\n{name}: {options.backbone}, {options.members} members, {options.seeds} seeds\n")
        print(table(results[name]), flush=True)
    write_json(options.out, {"settings": settings(options), "results": results})


if __name__ == "__main__":
    try:
        main()
    except NarrowcastError as error:
        raise SystemExit(str(error)) from None
