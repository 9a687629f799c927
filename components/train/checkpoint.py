"""A trained model on disk: weights in safetensors, everything else in JSON; nothing that runs code when read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.plan import Plan
from narrowcast.errors import NarrowcastError
from narrowcast.records import read_json, write_json

WEIGHTS = "model.safetensors"
QUANTISATION_AWARE = "quantisation_aware"


def save_checkpoint(directory: str | Path, model: CTRModel, metrics: dict[str, Any] | None = None) -> None:
    """Write `model.safetensors`, `model.json`, `plan.json`, `layout.json` and, where given, `metrics.json`.

    A model trained quantisation-aware says so in `model.json`: its rows are rounded again where it is loaded.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS)
    aware = {QUANTISATION_AWARE: True} if model.embedding.rounds else {}
    write_json(directory / "model.json", {**model.config.to_json(), **aware})
    write_json(directory / "layout.json", asdict(model.layout))
    model.plan.save(directory / "plan.json")
    if metrics is not None:
        write_json(directory / "metrics.json", metrics)


def load_checkpoint(directory: str | Path) -> CTRModel:
    """The model as it was saved, on the CPU, in evaluation mode. Raises NarrowcastError for a bad or missing file."""
    directory = Path(directory)
    try:
        written = read_json(directory / "model.json")
        aware = bool(written.pop(QUANTISATION_AWARE, False))
        config = ModelConfig.from_json(written, f"{directory}/model.json")
        layout = Layout.from_json(read_json(directory / "layout.json"))
    except (AttributeError, KeyError, TypeError) as error:
        raise NarrowcastError(f"{directory} is no checkpoint of this version ({error}): train again") from None
    model = CTRModel(layout, Plan.load(directory / "plan.json"), config, seed=0)
    model.load_state_dict(_read_weights(directory / WEIGHTS, model))
    model.embedding.round_rows(aware)
    return model.eval()


def _read_weights(path: Path, model: CTRModel) -> dict[str, Any]:
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise NarrowcastError(f"{path} does not exist: run the training step that writes it") from None
    except SafetensorError as error:
        raise NarrowcastError(f"{path} is not a readable safetensors file ({error}): train again") from None
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise NarrowcastError(
                f"{path}: '{name}' has shape {found.get(name)}, but plan.json and model.json demand "
                f"{expected.get(name)}: the files are not of one checkpoint; train again"
            )
    return weights
