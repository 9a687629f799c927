"""What settings say of pods, as Kubernetes has it."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from narrowcast.errors import NarrowcastError

CPU = re.compile(r"\d+(\.\d+)?|\d+m")
MEMORY = re.compile(r"\d+(\.\d+)?([kMGTPE]i?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
GPU = "nvidia.com/gpu"
USER = 1000
"""The image's user and group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Toleration:
    """A taint of nodes that a pod does not mind; `seconds` bounds how long it stays on one with NoExecute."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    seconds: int | None = None

    def __post_init__(self) -> None:
        if self.operator == "Exists" and self.value:
            raise NarrowcastError(f"toleration of '{self.key}': operator Exists takes no value; remove '{self.value}'")
        if not self.key and self.operator == "Equal":
            raise NarrowcastError("a toleration with operator Equal needs a key; give one, or operator Exists for all")
        if self.seconds is not None and self.effect != "NoExecute":
            raise NarrowcastError(f"toleration of '{self.key}': seconds count for the effect NoExecute alone")

    def body(self) -> dict[str, Any]:
        """As a pod has it."""
        said = {"key": self.key, "operator": self.operator, "value": self.value, "effect": self.effect}
        seconds = {} if self.seconds is None else {"tolerationSeconds": self.seconds}
        return {name: value for name, value in said.items() if value} | seconds


def check_cpu(name: str, value: str) -> None:
    """Raise NarrowcastError unless the setting `name` is a quantity of cores."""
    if not CPU.fullmatch(value):
        raise NarrowcastError(f"{name} is '{value}': give a number of cores, such as 500m or 2")


def check_memory(name: str, value: str) -> None:
    """Raise NarrowcastError unless the setting `name` is a quantity of memory."""
    if not MEMORY.fullmatch(value):
        raise NarrowcastError(f"{name} is '{value}': write it as Kubernetes does, such as 4Gi")


def cores(cpu: str) -> int:
    """Whole cores that a quantity comes to, at least one: the threads that a process with so much is to have."""
    return max(1, math.ceil(float(cpu.removesuffix("m")) / (1000 if cpu.endswith("m") else 1)))
