"""The processes that train one model together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """This process is worker `rank` of `size`. More than one need torch's default process group.

    All workers must call each method at the same point, with the same shapes.
    """

    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the workers, all in one message."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        for parameter, gradient in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def concatenate(self, values_B: NDArray[np.float32], num_rows: Sequence[int]) -> NDArray[np.float32]:
        """All workers' rows one after the other; `num_rows` says how many each worker has."""
        if self.size == 1:
            return values_B
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        padded = torch.zeros(max(num_rows), device=device)
        padded[: len(values_B)] = torch.from_numpy(values_B)
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:n] for part, n in zip(gathered, num_rows, strict=True)]).cpu().numpy()


ALONE = Workers()
