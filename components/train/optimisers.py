"""Optimisers: two for the rows of tables, whose cost depends on the rows that a step touches, and Adam for the rest.

Shape letters: u touched rows, R rows of a table, k their width.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.components.train.rows import coalesced

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class LazyAdam(torch.optim.Optimizer):
    """Adam (arXiv 1412.6980, algorithm 1) on the rows that the sparse gradient names; the others stay as they are.

    A row's moments decay only in the steps that touch it, and the bias correction counts all steps: as torch's
    SparseAdam, but for epsilon, which is added where Adam adds it. `weight_decay`: L2 penalty on the touched rows (our
    choice).
    """

    def __init__(self, tables: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> None:
        super().__init__(tables, {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for table_Rk, group in _with_gradient(self):
            state = self.state[table_Rk]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(table_Rk)
                state["square"] = torch.zeros_like(table_Rk)
            state["step"] += 1
            step = state["step"].item()
            ids_u, rows_uk, gradient_uk = _touched(table_Rk, group["weight_decay"])
            mean_uk = state["mean"].index_select(0, ids_u).lerp_(gradient_uk, 1 - BETAS[0])
            square_uk = state["square"].index_select(0, ids_u)
            square_uk.mul_(BETAS[1]).addcmul_(gradient_uk, gradient_uk, value=1 - BETAS[1])
            state["mean"].index_copy_(0, ids_u, mean_uk)
            state["square"].index_copy_(0, ids_u, square_uk)
            root_uk = square_uk.sqrt_().div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
            rows_uk.addcdiv_(mean_uk, root_uk, value=-group["lr"] / (1 - BETAS[0] ** step))
            table_Rk.index_copy_(0, ids_u, rows_uk)


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, the mean of its squared gradients: w -= rate g / (sqrt(a) + epsilon).

    After the row-wise Adagrad that FBGEMM has and DLRM's tables are trained with (arXiv 2104.05158). `weight_decay`: L2
    penalty on the touched rows (our choice).
    """

    def __init__(self, tables: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> None:
        super().__init__(tables, {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for table_Rk, group in _with_gradient(self):
            state = self.state[table_Rk]
            if not state:
                state["sum"] = torch.zeros(len(table_Rk), dtype=table_Rk.dtype, device=table_Rk.device)
            ids_u, rows_uk, gradient_uk = _touched(table_Rk, group["weight_decay"])
            mean_square_u = torch.linalg.vecdot(gradient_uk, gradient_uk) / table_Rk.shape[1]
            sum_u = state["sum"].index_select(0, ids_u).add_(mean_square_u)
            state["sum"].index_copy_(0, ids_u, sum_u)
            rows_uk.addcdiv_(gradient_uk, sum_u.sqrt_().add_(EPSILON).unsqueeze(1), value=-group["lr"])
            table_Rk.index_copy_(0, ids_u, rows_uk)


TABLE_OPTIMISERS: dict[str, type[LazyAdam | RowWiseAdagrad]] = {
    "lazy_adam": LazyAdam,
    "rowwise_adagrad": RowWiseAdagrad,
}


def _with_gradient(optimiser: torch.optim.Optimizer) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    return [(p, group) for group in optimiser.param_groups for p in group["params"] if p.grad is not None]


def _touched(table_Rk: nn.Parameter, weight_decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of the rows in the gradient, these rows, and their gradient with that of the L2 penalty."""
    assert table_Rk.grad is not None
    gradient = coalesced(table_Rk.grad)
    ids_u, gradient_uk = gradient.indices()[0], gradient.values()
    rows_uk = table_Rk.index_select(0, ids_u)
    if weight_decay:
        gradient_uk = gradient_uk.add(rows_uk, alpha=weight_decay)
    return ids_u, rows_uk, gradient_uk


class Optimisers:
    """What a training step calls: an optimiser for the tables' rows, and Adam for all other parameters."""

    def __init__(self, tables: torch.optim.Optimizer, dense: torch.optim.Optimizer) -> None:
        self.tables, self.dense = tables, dense
        self._rates = [[group["lr"] for group in part.param_groups] for part in self._parts]

    @property
    def _parts(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return self.tables, self.dense

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to `factor` times its first value."""
        for part, rates in zip(self._parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def tensors(self) -> dict[str, Tensor]:
        """All moments and counts, by name."""
        return {
            f"{kind}.{number}.{key}": value
            for kind, part in zip(("tables", "dense"), self._parts, strict=True)
            for number, values in part.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take on what `tensors` of the same kind of optimisers gave."""
        for kind, part in zip(("tables", "dense"), self._parts, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                owner, number, key = name.split(".")
                if owner == kind:
                    state.setdefault(int(number), {})[key] = value
            part.load_state_dict({**part.state_dict(), "state": state})
