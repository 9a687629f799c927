"""Embedding tables sharded over the workers by TorchRec, for tables that outgrow one machine; an optional extra.

A worker holds some rows of the tables and of their optimiser's state, looks them up for all workers, and applies
row-wise Adagrad to them as their gradients arrive in the backward pass (FBGEMM, arXiv 2101.05615). The scorer is small:
every worker has the whole of it. Training begins with the values of an ordinary model and ends in one, so nothing after
it knows of shards; that model, and while training begins the largest table, must fit into a machine's memory.

Shape letters: B rows, F categorical fields, L sequence length, n ids, D width, R rows of a table, r of them here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.optimisers import EPSILON, Optimisers
from narrowcast.components.train.plan import Plan, TablePlan
from narrowcast.components.train.scorer import Found, seeded_scorer, valid_elements
from narrowcast.components.train.state import TrainState
from narrowcast.components.train.tables import TableGroup
from narrowcast.errors import NarrowcastError

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.distributed.comm_ops import set_gradient_division
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingPlan
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
except ImportError as error:
    raise NarrowcastError(
        f"tables sharded by TorchRec need the extra narrowcast[torchrec], which is not whole here ({error}): "
        "run make setup-torchrec"
    ) from None

ROW_WISE_FROM = 100_000
"""Tables of as many rows are divided over all workers; smaller ones lie whole on one, which costs fewer messages."""
SHARD = "shard_"
"""Keeps a table's name from clashing with an attribute of the module."""


class ShardedModel(nn.Module):
    """What `CTRModel` computes, its tables spread over all workers of torch's default process group.

    All workers must build it, call it and take its gradients at the same points, each on its own rows of a batch (or on
    none). The workers' gradients of a table are summed. `parameters` are the scorer's alone: the tables' rows move in
    the backward pass, by `row_optimiser`. `state_dict` holds the scorer and this worker's shards, plain tensors.

    Tables of `row_wise_from` rows and more are divided by rows, the others lie whole on one worker. Raises
    NarrowcastError for a plan with tables that are not plain.
    """

    def __init__(
        self,
        layout: Layout,
        plan: Plan,
        config: ModelConfig,
        seed: int,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        device: torch.device | str = "cpu",
        row_wise_from: int = ROW_WISE_FROM,
    ) -> None:
        super().__init__()
        for name in layout.table_rows:
            _demand_plain(name, plan.table(name), plan.width)
        self.layout, self.plan, self.config, self.seed = layout, plan, config, seed
        self.scorer = seeded_scorer(layout, plan.width, config, seed).to(device)
        optimiser = {
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": learning_rate,
            "eps": EPSILON,
            "weight_decay": weight_decay,
            "weight_decay_mode": WeightDecayMode.L2,
        }
        tables = _shard(_collection(layout, plan), optimiser, torch.device(device), row_wise_from)
        # In a tuple, lest the tables' parameters count as ordinary ones.
        self._tables = (tables,)
        self.row_optimiser = RowOptimiser(tables.fused_optimizer)
        for name, shard_rD, offset in _shards(tables.state_dict()):
            whole_RD = _initial_values(layout, plan, seed, name)
            shard_rD.copy_(whole_RD[offset : offset + len(shard_rD)])
            self.register_buffer(SHARD + name, shard_rD)

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B."""
        return self.scorer(self.look_up(ids_BF, sequences), dense_BN)

    def look_up(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        """As an ordinary embedding layer, but for padding, which is not looked up and gives zeros."""
        valid_BL = valid_elements(sequences)
        values = [*ids_BF.long().unbind(1), *(ids_BL[valid_BL[name]].long() for name, ids_BL in sequences.items())]
        lengths = [
            *(torch.ones_like(ids_B) for ids_B in values[: ids_BF.shape[1]]),
            *(v.sum(1) for v in valid_BL.values()),
        ]
        if not len(ids_BF):  # TorchRec takes no batch without rows, but one whose row holds no ids
            lengths = [torch.zeros(1, dtype=torch.long, device=ids_BF.device) for _ in values]
        names = [*self.layout.categorical, *sequences]
        kept = [self.plan.table(self.layout.table_of[name]).kept_rows for name in names]
        known = [torch.where(ids < n, ids, 0) for ids, n in zip(values, kept, strict=True)]
        found = self._tables[0](KeyedJaggedTensor(names, torch.cat(known), lengths=torch.cat(lengths))).wait()
        rows_BLD = {}
        for name, ids_BL in sequences.items():
            rows_BLD[name] = found[name].values().new_zeros(*ids_BL.shape, self.plan.width)
            rows_BLD[name][valid_BL[name]] = found[name].values()
        categorical = [found[name].values() for name in self.layout.categorical]
        return Found(torch.stack(categorical, dim=1), rows_BLD, valid_BL)

    def gathered(self) -> CTRModel | None:
        """The ordinary model with these values, on the CPU, for the first worker; None for the others, who must call
        this too."""
        first = dist.get_rank() == 0
        model = CTRModel(self.layout, self.plan, self.config, self.seed) if first else None
        with torch.no_grad():
            for key, tensor_RD in self._tables[0].state_dict().items():
                whole_RD = torch.empty(tensor_RD.size(), device=self._tables[0].device) if first else None
                tensor_RD.gather(0, whole_RD)
                if model and whole_RD is not None:
                    model.embedding.tables[_table(key)].weight_Rk.copy_(whole_RD)
        if model:
            model.scorer.load_state_dict(self.scorer.state_dict())
        return model


class RowOptimiser:
    """TorchRec's fused optimiser as an ordinary one to the training loop; its steps are taken in the backward pass.

    A rate set in `param_groups` counts from the next `zero_grad` on.
    """

    def __init__(self, fused: Any) -> None:
        self._fused = fused

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = list(self._fused.param_groups)
        return groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._fused.zero_grad()

    def step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """`state`: by a number, `sum`, the accumulators (r) of this worker's rows of a table."""
        return {"state": {i: {"sum": sum_r} for i, sum_r in enumerate(self._sums())}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for i, sum_r in enumerate(self._sums()):
            sum_r.copy_(state["state"][i]["sum"])

    def _sums(self) -> Iterator[Tensor]:
        for _, states in sorted(self._fused.state_dict()["state"].items()):
            for _, sum_r, _ in _shards(states):
                yield sum_r


def sharded_state(layout: Layout, plan: Plan, config: TrainConfig, device: torch.device | str = "cpu") -> TrainState:
    """Before the first step of `fit`; every worker calls this. A saved state is one worker's own and goes back to it.

    Raises NarrowcastError for a plan as `ShardedModel` does, and for settings that fused steps do not allow.
    """
    if config.table_optimiser != "rowwise_adagrad":
        raise NarrowcastError(
            f"table_optimiser is {config.table_optimiser}: tables sharded by TorchRec need rowwise_adagrad"
        )
    if config.accumulate > 1:
        raise NarrowcastError(
            f"accumulate is {config.accumulate}: tables sharded by TorchRec move in every backward pass; set it to 1"
        )
    rate = config.table_learning_rate or config.learning_rate
    model = ShardedModel(
        layout, plan, config.model, config.seed, learning_rate=rate, weight_decay=config.weight_decay, device=device
    )
    dense = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    optimisers = Optimisers(tables=model.row_optimiser, dense=dense)  # type: ignore[arg-type]
    return TrainState(model=model, optimisers=optimisers, precision=config.precision)


def _demand_plain(name: str, table: TablePlan, width: int) -> None:
    columns = tuple(range(width))
    if table.projection or table.inner_width or any(block.columns != columns for block in table.blocks):
        raise NarrowcastError(
            f"table '{name}' of the plan has a projection, an inner width or columns left out, which tables sharded by "
            "TorchRec cannot have: train this plan with training.tables=local"
        )


def _initial_values(layout: Layout, plan: Plan, seed: int, table: str) -> Tensor:
    """A table as the ordinary model draws it, R x D."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + list(layout.table_rows).index(table))
    return TableGroup([plan.table(table)], plan.width, [generator]).weight_Rk.detach()


def _collection(layout: Layout, plan: Plan) -> EmbeddingCollection:
    """The tables without memory for their values."""
    tables = [
        EmbeddingConfig(
            name=table,
            num_embeddings=plan.table(table).kept_rows,
            embedding_dim=plan.width,
            feature_names=[field for field, of in layout.table_of.items() if of == table],
        )
        for table in layout.table_rows
    ]
    return EmbeddingCollection(tables=tables, device=torch.device("meta"))


def _shard(
    collection: EmbeddingCollection, optimiser: dict[str, Any], device: torch.device, row_wise_from: int
) -> DistributedModelParallel:
    set_gradient_division(False)  # the workers' losses are shares of one mean: their gradients are to be summed
    sharder = EmbeddingCollectionSharder(fused_params=optimiser)
    rows_of = [0] * dist.get_world_size()
    how = {}
    for table in sorted(collection.embedding_configs(), key=lambda table: -table.num_embeddings):
        if table.num_embeddings >= row_wise_from:
            how[table.name] = row_wise(compute_kernel="fused")
        else:
            worker = rows_of.index(min(rows_of))
            rows_of[worker] += table.num_embeddings
            how[table.name] = table_wise(rank=worker, compute_kernel="fused")
    plan = construct_module_sharding_plan(collection, how, sharder, device_type=device.type)
    return DistributedModelParallel(
        collection, device=device, plan=ShardingPlan({"": plan}), sharders=[sharder], init_data_parallel=False
    )


def _table(key: str) -> str:
    """The table's name in `embeddings.<name>.weight`."""
    return key.removeprefix("embeddings.").removesuffix(".weight")


def _shards(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, int]]:
    """This worker's part of every sharded tensor, if it has one: the table's name, its values, and its first row."""
    for key, tensor in tensors.items():
        for shard in tensor.local_shards():
            yield _table(key), shard.tensor, shard.metadata.shard_offsets[0]
