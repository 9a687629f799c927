"""The models' heads, one file each. Every file in this folder registers its head when this package is imported."""

import importlib
import pkgutil

from narrowcast.components.train.heads.registry import (
    HEADS,
    HeadConfig,
    backbones,
    build_head,
    describe_backbones,
    head_config,
    register,
)

__all__ = ["HEADS", "HeadConfig", "backbones", "build_head", "describe_backbones", "head_config", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
