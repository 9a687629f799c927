"""The user history encoders, one file each. Every file in this folder registers its encoder when this package is
imported."""

import importlib
import pkgutil

from narrowcast.components.train.histories.registry import (
    HISTORIES,
    Amortised,
    HistoryConfig,
    HistoryState,
    build_history,
    describe_histories,
    histories,
    history_config,
    register,
)

__all__ = [
    "HISTORIES",
    "Amortised",
    "HistoryConfig",
    "HistoryState",
    "build_history",
    "describe_histories",
    "histories",
    "history_config",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
