"""Which heads there are: every head's class by its config class.

A head is an `nn.Module` built from `(config, num_tokens, width, num_dense)` whose `forward(tokens_BTD, dense_BN)`
returns logits_B. Its config is a frozen dataclass with at least `hidden` and `dropout`, and the backbone's name as the
class variable `name`; settings of the backbone's own follow, each with a default. A head may add a term to the training
loss by a method `penalty()` that returns a scalar.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import nn

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.settings import build


class HeadConfig(Protocol):
    name: ClassVar[str]

    @property
    def hidden(self) -> tuple[int, ...]: ...

    @property
    def dropout(self) -> float: ...


HEADS: dict[type[HeadConfig], Callable[..., nn.Module]] = {}
Head = TypeVar("Head", bound=type[nn.Module])


def register(config_class: type[HeadConfig]) -> Callable[[Head], Head]:
    """Class decorator that makes a head known under its config class, and so under the config's `name`."""

    def add(head: Head) -> Head:
        taken = [known for known in HEADS if known.name == config_class.name and known is not config_class]
        if taken:
            raise NarrowcastError(
                f"two models are named '{config_class.name}': rename the one in {config_class.__module__}"
            )
        HEADS[config_class] = head
        return head

    return add


def backbones() -> tuple[str, ...]:
    """Names of all registered heads, sorted."""
    return tuple(sorted(config_class.name for config_class in HEADS))


def describe_backbones() -> dict[str, str]:
    """What every backbone is, by name: the first line of its file."""
    lines = {config.name: (sys.modules[config.__module__].__doc__ or "").split("\n")[0] for config in HEADS}
    return dict(sorted(lines.items()))


def head_config(
    backbone: str, *, hidden: tuple[int, ...], dropout: float, settings: Mapping[str, Any] | None = None
) -> HeadConfig:
    """The config of the head named `backbone`; `settings` are its own, as YAML or JSON gives them.

    Raises NarrowcastError with the nearest valid name, for an unknown backbone or setting.
    """
    for config_class in HEADS:
        if config_class.name == backbone:
            for key in {"hidden", "dropout"} & (settings or {}).keys():
                raise NarrowcastError(
                    f"settings of the model '{backbone}': '{key}' is a setting of its own; set model.{key}"
                )
            given = {"hidden": list(hidden), "dropout": dropout, **(settings or {})}
            return cast(HeadConfig, build(config_class, given, f"settings of the model '{backbone}'"))
    raise NarrowcastError(f"no model named '{backbone}': {nearest(backbone, backbones())}")


def build_head(config: HeadConfig, num_tokens: int, width: int, num_dense: int) -> nn.Module:
    """The head that `config` describes, drawn from torch's default generator.

    `num_tokens` embeddings of `width` values and `num_dense` numbers come in for every row.
    """
    return HEADS[type(config)](config, num_tokens, width, num_dense)
