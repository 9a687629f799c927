"""What a model is, in settings: its backbone and its history encoder."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from narrowcast.components.train.heads import HeadConfig, head_config
from narrowcast.components.train.histories import HistoryConfig, history_config
from narrowcast.errors import NarrowcastError
from narrowcast.settings import build


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A backbone by name, the widths of its hidden layers, and the share of their outputs dropped in training.

    `settings`: the backbone's own. `history`: the history encoder by name, `history_settings` its own; without effect
    where the schema has no history. `init_std`: standard deviation of the embedding tables' initial values.
    """

    backbone: str = "deepfm"
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    history: str = "mean"
    history_settings: dict[str, Any] = field(default_factory=dict)
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise NarrowcastError(f"hidden is {self.hidden}: give at least one layer width, each at least 1")
        if not 0 <= self.dropout < 1:
            raise NarrowcastError(f"dropout is {self.dropout}: must be at least 0 and less than 1")
        if not 0 < self.init_std < math.inf:
            raise NarrowcastError(f"init_std is {self.init_std}: must be a positive number")
        _ = self.head, self.history_encoder

    @property
    def head(self) -> HeadConfig:
        """The head's own config. Raises NarrowcastError for an unknown backbone or setting."""
        return head_config(self.backbone, hidden=self.hidden, dropout=self.dropout, settings=self.settings)

    @property
    def history_encoder(self) -> HistoryConfig:
        """The history encoder's own config. Raises NarrowcastError for an unknown encoder or setting."""
        return history_config(self.history, self.history_settings)

    def to_json(self) -> dict[str, Any]:
        """Each setting in the type that its config has, however it was given: 16 and 16.0 are one."""
        return {
            **asdict(self),
            "hidden": list(self.hidden),
            "settings": {name: getattr(self.head, name) for name in self.settings},
            "history_settings": {name: getattr(self.history_encoder, name) for name in self.history_settings},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "the model's settings") -> "ModelConfig":
        """Raises NarrowcastError, beginning with `where`, for an unknown setting or one of the wrong type."""
        config: ModelConfig = build(cls, data, where)
        return config
