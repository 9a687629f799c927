"""How far a training has come, and how it is saved and resumed."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from narrowcast.components.train.optimisers import Optimisers
from narrowcast.records import read_json, write_json

TENSORS, PROGRESS = "state.safetensors", "state.json"


@dataclass(kw_only=True, slots=True)
class TrainState:
    """A model and its optimiser after `epoch` epochs, the learning curves, and the values of the best epoch.

    `curves` has one entry an epoch: `epoch` (from 1), `train_logloss`, `validation_auc`, `validation_logloss`.
    `precision` is that of the forward pass, which may fall back to float32 on the way. `resumed_from_epoch` is the
    epoch after which a killed run went on, if it was.
    """

    model: nn.Module
    optimisers: Optimisers
    precision: str = "float32"
    curves: list[dict[str, float]] = field(default_factory=list)
    best_values: dict[str, Tensor] = field(default_factory=dict)
    resumed_from_epoch: int | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def epoch(self) -> int:
        return len(self.curves)

    @property
    def best(self) -> dict[str, float]:
        """The curves' entry with the highest validation AUC, the earliest of equals."""
        return max(self.curves, key=lambda entry: entry["validation_auc"])

    @property
    def best_epoch(self) -> int:
        return int(self.best["epoch"])

    @property
    def epochs_since_best(self) -> int:
        return self.epoch - self.best_epoch if self.curves else 0

    def end_epoch(self, **figures: float) -> None:
        self.curves.append({"epoch": self.epoch + 1, **figures})
        if self.best_epoch == self.epoch:
            self.best_values = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore_best(self) -> None:
        self.model.load_state_dict(self.best_values)

    def save(self, directory: Path) -> None:
        """Write everything that going on needs: `TENSORS` and `PROGRESS`."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_values.items()}
        tensors |= {f"optimisers.{name}": value for name, value in self.optimisers.tensors().items()}
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            directory / TENSORS,
        )
        write_json(
            directory / PROGRESS,
            {"curves": self.curves, "precision": self.precision, "resumed_from_epoch": self.resumed_from_epoch},
        )

    def load(self, directory: Path) -> None:
        """Take on what `save` wrote, from the same kind of model and optimiser."""
        self.load_progress(directory)
        tensors = load_file(directory / TENSORS)
        self.model.load_state_dict(_under("model.", tensors))
        self.best_values = _under("best.", tensors)
        self.optimisers.load_tensors(_under("optimisers.", tensors))

    def load_progress(self, directory: Path) -> None:
        """Of what `save` wrote, all but the tensors."""
        progress = read_json(directory / PROGRESS)
        self.curves, self.precision = progress["curves"], progress["precision"]
        self.resumed_from_epoch = progress["resumed_from_epoch"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
