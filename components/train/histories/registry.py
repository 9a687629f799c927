"""Which history encoders there are: every encoder's class by its config class.

An encoder is an `nn.Module` built from `(config, width)`. Its `forward(rows_BLD, valid_BL, candidate_BD)` returns
token_BD, the history's token among the head's. `rows_BLD` are the embeddings of the user's earlier items, oldest first,
padded at the end; `valid_BL` is False at a pad; `candidate_BD` is the embedding of the row's own item, from the same
table. Its config is a frozen dataclass whose settings all have defaults, and the encoder's name as the class variable
`name`.

An encoder may offer `Amortised` besides: one pass over a history that serves all candidates.

Shape letters: B users, L history items, M candidates, D embedding width.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.settings import build


class HistoryConfig(Protocol):
    name: ClassVar[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryState:
    """All that candidates read of B histories; may be kept and used again while a history stays as it is.

    `by_item`: tensors with something of every item, each B x L x ...; `by_user`: of a history as a whole, each B x ...
    `valid_BL` is None where nothing is padding.
    """

    valid_BL: Tensor | None
    by_item: tuple[Tensor, ...] = ()
    by_user: tuple[Tensor, ...] = ()

    def user(self, index: int, length: int) -> "HistoryState":
        """One history's state, of its first `length` items, in memory of its own."""
        valid_BL = None if self.valid_BL is None else self.valid_BL[index : index + 1, :length]
        return HistoryState(
            valid_BL=None if valid_BL is None or bool(valid_BL.all()) else valid_BL.clone(),
            by_item=tuple(tensor[index : index + 1, :length].clone() for tensor in self.by_item),
            by_user=tuple(tensor[index : index + 1].clone() for tensor in self.by_user),
        )

    def num_bytes(self) -> int:
        """Bytes of the memory that the tensors keep alive."""
        tensors = [*self.by_item, *self.by_user, *([] if self.valid_BL is None else [self.valid_BL])]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@runtime_checkable
class Amortised(Protocol):
    """What an encoder offers that can read a history once for all candidates.

    No token depends on another candidate, on another history or on padding, and all are those that `forward` gives.
    """

    def encode(self, rows_BLD: Tensor, valid_BL: Tensor) -> HistoryState:
        """The histories alone, whatever the candidates."""
        ...

    def score(self, parts: Sequence[tuple[HistoryState, Tensor]]) -> list[Tensor]:
        """For each state of B histories and the M candidates of every one of them (B x M x D): tokens, B x M x D."""
        ...


HISTORIES: dict[type[HistoryConfig], Callable[..., nn.Module]] = {}
Encoder = TypeVar("Encoder", bound=type[nn.Module])


def register(config_class: type[HistoryConfig]) -> Callable[[Encoder], Encoder]:
    """Class decorator that makes an encoder known under its config class, and so under the config's `name`."""

    def add(encoder: Encoder) -> Encoder:
        taken = [known for known in HISTORIES if known.name == config_class.name and known is not config_class]
        if taken:
            raise NarrowcastError(
                f"two history encoders are named '{config_class.name}': rename the one in {config_class.__module__}"
            )
        HISTORIES[config_class] = encoder
        return encoder

    return add


def histories() -> tuple[str, ...]:
    """Names of all registered encoders, sorted."""
    return tuple(sorted(config_class.name for config_class in HISTORIES))


def describe_histories() -> dict[str, str]:
    """What every encoder is, by name: the first line of its file."""
    lines = {config.name: (sys.modules[config.__module__].__doc__ or "").split("\n")[0] for config in HISTORIES}
    return dict(sorted(lines.items()))


def history_config(name: str, settings: dict[str, Any]) -> HistoryConfig:
    """The config of the encoder named `name`, from plain YAML or JSON values.

    Raises NarrowcastError with the nearest valid name, for the encoder and for a key of its settings.
    """
    for config_class in HISTORIES:
        if config_class.name == name:
            config: HistoryConfig = build(config_class, settings, f"history '{name}'")
            return config
    raise NarrowcastError(f"no history encoder named '{name}': {nearest(name, histories())}")


def build_history(config: HistoryConfig, width: int) -> nn.Module:
    """The encoder that `config` describes for embeddings of `width` values, drawn from torch's default generator."""
    return HISTORIES[type(config)](config, width)
