"""The processes that train one model together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from narrowcast.components.train.rows import coalesced, sum_by_id


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
        """Replace every gradient by its sum over the workers: dense ones in one message, sparse ones by their rows.

        A gradient is sparse on all workers or on none.
        """
        if self.size == 1:
            return
        dense = []
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = self._sum_sparse(coalesced(parameter.grad))
            else:
                dense.append(parameter)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        for parameter, gradient in zip(dense, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """Every worker sends its rows to all, padded to the longest; each adds them up in the workers' order."""
        ids_u, values_uk = gradient.indices()[0], gradient.values()
        counts = [int(count) for count in self._gather(torch.tensor([len(ids_u)], device=ids_u.device))]
        padding = max(counts) - len(ids_u)
        all_ids = self._gather(nn.functional.pad(ids_u, (0, padding)))
        all_values = self._gather(nn.functional.pad(values_uk, (0, 0, 0, padding)))
        ids_n = torch.cat([ids[:n] for ids, n in zip(all_ids, counts, strict=True)])
        values_nk = torch.cat([values[:n] for values, n in zip(all_values, counts, strict=True)])
        return sum_by_id(ids_n, values_nk, len(gradient))

    def _gather(self, value: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(gathered, value)
        return gathered

    def concatenate(self, values_B: NDArray[np.float32], num_rows: Sequence[int]) -> NDArray[np.float32]:
        """All workers' rows one after the other; `num_rows` says how many each worker has."""
        if self.size == 1:
            return values_B
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        padded = torch.zeros(max(num_rows), device=device)
        padded[: len(values_B)] = torch.from_numpy(values_B)
        return torch.cat([part[:n] for part, n in zip(self._gather(padded), num_rows, strict=True)]).cpu().numpy()


ALONE = Workers()
