"""Which arithmetic the forward pass uses."""

import contextlib

import torch

from narrowcast.errors import NarrowcastError

PRECISIONS = ("float32", "bfloat16")
MOST_AUC_LOSS = 0.0005
"""By how much bfloat16 may lower the AUC on validation before training goes back to float32 (our choice)."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware: AMX or AVX-512 BF16, or a GPU from compute 8.0 on."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def demand_precision(precision: str, device: torch.device) -> None:
    """Raises NarrowcastError where `device` has no bfloat16 and it is asked for."""
    if precision == "bfloat16" and not has_bfloat16(device):
        raise NarrowcastError(
            f"precision is bfloat16, which this {device.type} has no instructions for: set precision to float32"
        )


def computing(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A block whose matrix products are computed in `precision`; parameters and gradients stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
