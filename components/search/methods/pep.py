"""PEP: thresholds learnt with the embeddings decide which columns, or which rows, are worth their bytes.

arXiv 2101.07577: the model computes with V' = sign(V) ReLU(|V| - sigmoid(s)) and learns s by gradient descent.
Ours: the explicit sparsity term and its growing weight, the rules by which a column or row counts as dropped, and
giving the bytes left over back. Shape letters: R rows, D columns.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from narrowcast.components.search.registry import Method, Problem, register
from narrowcast.components.train.embedding import look_up
from narrowcast.components.train.fit import deterministic, optimisers, penalty, seed_dropout, shuffled_batches
from narrowcast.components.train.model import CTRModel, to_tensors
from narrowcast.components.train.plan import Block, Plan, TablePlan, full_plan
from narrowcast.components.train.scorer import Found
from narrowcast.components.train.tables import EmbeddingTable
from narrowcast.errors import NarrowcastError

CHECK_EVERY = 5
"""Steps between two looks at what the thresholds leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PEPConfig:
    """Thresholds by table and column, so that whole columns fall away.

    `start`: s before training, just under the logit of the tables' initial scale where that is 0.01, and shifted by the
    log of the scale over 0.01 where not; far below it sigmoid(s) has no gradient in float32 and pruning never begins,
    so s is held at or above it. `threshold_rate`: Adam's step size for s. `sparsity`: weight of the sparsity term at
    first; it grows `growth`-fold an epoch, step by step, until the budget is reached. `floor`: the share of a column's
    values (each row counted as often as training meets it) or of a row's values under which it counts as dropped.
    `max_steps` bounds the search.
    """

    start: float = -7.0
    threshold_rate: float = 0.05
    sparsity: float = 1e-5
    growth: float = 10.0
    floor: float = 0.5
    max_steps: int = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class PEPRowConfig(PEPConfig):
    """Thresholds by table and row; as many of the most frequent rows are kept as rows survive."""


class Thresholds(nn.Module):
    """What a table is seen through; `s_UD` is 1 x D for columns, R x 1 for rows."""

    def __init__(self, table: EmbeddingTable, start: float, *, by_row: bool) -> None:
        super().__init__()
        self.table = table
        num_rows, width = table.weight_Rk.shape
        self.s_UD = nn.Parameter(torch.full((num_rows, 1) if by_row else (1, width), start))

    def forward(self, ids: Tensor) -> Tensor:
        """The thresholds of the rows `ids`: ... x D for columns, ... x 1 for rows."""
        return nn.functional.embedding(ids, self.s_UD) if len(self.s_UD) > 1 else self.s_UD[0].expand(*ids.shape, -1)

    @torch.no_grad()
    def nonzero(self) -> Tensor:
        """Which values survive, R x D."""
        return self.table.weight_Rk.abs() > torch.sigmoid(self.s_UD)


def soft_threshold(values: Tensor, s: Tensor) -> Tensor:
    """sign(V) ReLU(|V| - sigmoid(s))."""
    return torch.sign(values) * nn.functional.relu(values.abs() - torch.sigmoid(s))


class Supernet:
    """The model whose tables carry thresholds, and its training.

    Of the problem's training it has the model, the optimisers with their rates and weight decay, the batch size and the
    seed. Epochs, patience, schedule, precision, rounding and the parts of a batch are for what is trained on the plan.
    """

    def __init__(self, problem: Problem, config: PEPConfig) -> None:
        self.problem = problem
        self.config = config
        self.training = problem.training
        self.start = config.start + math.log(self.training.model.init_std / 0.01)
        by_row = isinstance(config, PEPRowConfig)
        plan = full_plan(problem.table_rows, problem.width)
        self.model = CTRModel(problem.data.layout, plan, self.training.model, self.training.seed)
        self.optimisers = optimisers(self.model, self.training)
        self.tables: dict[str, Thresholds] = {}
        for name, table in self.model.embedding.tables.items():
            self.tables[name] = Thresholds(table, self.start, by_row=by_row)
        thresholds = [table.s_UD for table in self.tables.values()]
        self.optimisers.dense.add_param_group({"params": thresholds, "lr": config.threshold_rate})

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B, computed with the soft-thresholded rows."""
        embedding = self.model.embedding
        found = embedding(ids_BF, sequences)
        thresholds = look_up(embedding.layout, self.tables, ids_BF, sequences)
        pruned = Found(
            soft_threshold(found.categorical_BFD, thresholds.categorical_BFD),
            {name: soft_threshold(rows, thresholds.rows_BLD[name]) for name, rows in found.rows_BLD.items()},
            found.valid_BL,
        )
        logit_B: Tensor = self.model.scorer(pruned, dense_BN)
        return logit_B

    def steps(self) -> Iterator[int]:
        """Train step by step; yields the number of steps made, up to `max_steps`."""
        train = self.problem.data.split("train")
        steps_per_epoch = math.ceil(len(train) / self.training.batch_size)
        epochs = (shuffled_batches(train, self.training, epoch) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), self.config.max_steps)
        for step, (batch, label_B, _) in enumerate(batches):
            if step % steps_per_epoch == 0:
                seed_dropout(self.training.seed, step // steps_per_epoch, rank=0)
            logit_B = self.forward(*to_tensors(batch))
            loss = nn.functional.binary_cross_entropy_with_logits(logit_B, torch.tensor(label_B, dtype=logit_B.dtype))
            sparsity = self.config.sparsity * self.config.growth ** (step / steps_per_epoch)
            self.optimisers.zero_grad()
            (loss + penalty(self.model) + sparsity * self.sparsity_term()).backward()
            self.optimisers.step()
            with torch.no_grad():
                for table in self.tables.values():
                    table.s_UD.clamp_(min=self.start)
            yield step + 1

    def sparsity_term(self) -> Tensor:
        """Mean of -log sigmoid(s) over all values of all tables: a threshold counts by the values it guards."""
        num_values = {name: table.table.weight_Rk.numel() for name, table in self.tables.items()}
        terms = [nn.functional.softplus(-table.s_UD).mean() * num_values[name] for name, table in self.tables.items()]
        return torch.stack(terms).sum() / sum(num_values.values())


def search_columns(problem: Problem, config: PEPConfig) -> Plan:
    """Train until the columns that survive fit the budget.

    A column survives while at least `floor` of its values do. A table that loses all its columns is served as
    all-zero rows and stores nothing: whether a field is worth any bytes is for the thresholds to say. What the last
    steps dropped beyond need returns, the column with the largest surviving share first.
    """
    weights = {name: torch.from_numpy(_weights(counts)) for name, counts in problem.counts.items()}

    def plan_of(columns: dict[str, list[int]]) -> Plan:
        tables = {}
        for name, rows in problem.table_rows.items():
            kept = tuple(sorted(columns[name]))
            block = Block(start=0, stop=rows, columns=kept, bits=problem.bits)
            tables[name] = TablePlan(rows=rows, blocks=(block,), inner_width=problem.inner_width)
        return Plan(width=problem.width, tables=tables, method="pep", parameters=asdict(config))

    net = Supernet(problem, config)
    with deterministic():
        for step in net.steps():
            if step % CHECK_EVERY:
                continue
            shares = {name: (weights[name] @ table.nonzero().double()).tolist() for name, table in net.tables.items()}
            kept = {name: [d for d, share in enumerate(s) if share >= config.floor] for name, s in shares.items()}
            if plan_of(kept).stored_bytes() <= problem.budget_bytes:
                break
        else:
            raise _too_slow(problem, config)
    dropped = [(-share, name, d) for name, s in shares.items() for d, share in enumerate(s) if d not in kept[name]]
    for _, name, column in sorted(dropped):
        grown = {**kept, name: [*kept[name], column]}
        if plan_of(grown).stored_bytes() <= problem.budget_bytes:
            kept = grown
    return plan_of(kept)


def search_rows(problem: Problem, config: PEPRowConfig) -> Plan:
    """Train until the rows that survive fit the budget.

    A row survives while at least `floor` of its values do. Rows are ranked by frequency, so a table that n rows survive
    in keeps its first n: no index is stored, and row 0 always stays. What the last steps dropped beyond need returns,
    the row with the largest surviving share first.
    """
    row_bytes = Block(start=0, stop=1, columns=tuple(range(problem.width)), bits=problem.bits).row_bytes()
    net = Supernet(problem, config)
    with deterministic():
        for step in net.steps():
            if step % CHECK_EVERY:
                continue
            shares = {name: table.nonzero().double().mean(1).numpy() for name, table in net.tables.items()}
            kept = {name: max(1, int((share >= config.floor).sum())) for name, share in shares.items()}
            spare = problem.budget_bytes // row_bytes - sum(kept.values())
            if spare >= 0:
                break
        else:
            raise _too_slow(problem, config)
    best_dropped = [(-share, name) for name, s in shares.items() for share in np.sort(s)[::-1][kept[name] :]]
    for _, name in sorted(best_dropped)[:spare]:
        kept[name] += 1
    columns = tuple(range(problem.width))
    tables = {
        name: TablePlan(
            rows=rows,
            blocks=(Block(start=0, stop=kept[name], columns=columns, bits=problem.bits),),
            inner_width=problem.inner_width,
        )
        for name, rows in problem.table_rows.items()
    }
    return Plan(width=problem.width, tables=tables, method="pep_row", parameters=asdict(config))


def least_bytes_by_column(problem: Problem) -> int:
    """One column of the smallest table: less is no embedding at all."""
    return min(
        Block(start=0, stop=rows, columns=(0,), bits=problem.bits).stored_bytes()
        for rows in problem.table_rows.values()
    )


def least_bytes_by_row(problem: Problem) -> int:
    """Row 0 of every table."""
    row = Block(start=0, stop=1, columns=tuple(range(problem.width)), bits=problem.bits)
    return row.stored_bytes() * len(problem.table_rows)


def _weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of the training occurrences by row; equal ones where training met none."""
    total = counts.sum()
    return counts / total if total else np.full(len(counts), 1 / len(counts))


def _too_slow(problem: Problem, config: PEPConfig) -> NarrowcastError:
    return NarrowcastError(
        f"PEP's thresholds did not reach {problem.budget_bytes:,} bytes in {config.max_steps} steps: raise the budget "
        "or the learning rate, or choose method 'mde'"
    )


SPARSITIES = (1e-5, 1e-4, 1e-6, 1e-3)
"""Trials start the sparsity term's weight from these in turn: patient and hasty pruning drop other columns."""


def settings(num_trials: int) -> tuple[PEPConfig, ...]:
    return tuple(PEPConfig(sparsity=sparsity) for sparsity in SPARSITIES[:num_trials])


def row_settings(num_trials: int) -> tuple[PEPRowConfig, ...]:
    return tuple(PEPRowConfig(sparsity=sparsity) for sparsity in SPARSITIES[:num_trials])


register(
    PEPConfig,
    Method(
        name="pep",
        summary="learnt thresholds by field and dimension; whole columns fall away",
        source="PEP, arXiv 2101.07577",
        settings=settings,
        least_bytes=least_bytes_by_column,
        search=search_columns,
    ),
)
register(
    PEPRowConfig,
    Method(
        name="pep_row",
        summary="learnt thresholds by row; the most frequent rows of every table are kept",
        source="PEP, arXiv 2101.07577",
        settings=row_settings,
        least_bytes=least_bytes_by_row,
        search=search_rows,
    ),
)
