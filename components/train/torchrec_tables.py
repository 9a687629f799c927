"""Embedding tables sharded over the workers by TorchRec, for tables that outgrow one machine; an optional extra.

A worker holds some rows of the tables and of their optimiser's state, looks them up for all workers, and applies
row-wise Adagrad to them as their gradients arrive in the backward pass (FBGEMM, arXiv 2104.05158). The scorer is small:
every worker has the whole of it. Training begins with the values of an ordinary model and ends in one, so nothing after
it knows of shards; that model, and while training begins the largest table, must fit into a machine's memory.

Shape letters: B rows, F categorical fields, L sequence length, n ids, D width, R rows of a table, r of them here.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.embedding import padded, table_generator
from narrowcast.components.train.model import CTRModel
from narrowcast.components.train.optimisers import EPSILON
from narrowcast.components.train.plan import Plan
from narrowcast.components.train.scorer import Found, seeded_scorer, valid_elements
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
WHOLE = "embedding.groups.0.weight_Rk"
"""All tables of an ordinary model: plain ones have one form, so they are one group."""
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
        demand_plain(layout, plan)
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
        kept = [plan.table(name).kept_rows for name in layout.table_rows]
        starts = dict(zip(layout.table_rows, itertools.accumulate(kept, initial=0), strict=False))
        self.first_row: dict[str, int] = {}
        for name, shard_rD, offset in _shards(tables.state_dict()):
            whole_RD = _initial_values(layout, plan, seed, config.init_std, name)
            shard_rD.copy_(whole_RD[offset : offset + len(shard_rD)])
            self.register_buffer(SHARD + name, shard_rD)
            self.first_row[name] = starts[name] + offset

    def forward(self, ids_BF: Tensor, dense_BN: Tensor, sequences: Mapping[str, Tensor]) -> Tensor:
        """Logits, B."""
        return self.scorer(self.look_up(ids_BF, sequences), dense_BN)

    def look_up(self, ids_BF: Tensor, sequences: Mapping[str, Tensor]) -> Found:
        """As an ordinary embedding layer."""
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
        rows_BLD = {name: padded(found[name].values(), valid_BL[name]) for name in sequences}
        categorical = [found[name].values() for name in self.layout.categorical]
        rows_BFD = torch.stack(categorical, dim=1) if categorical else next(iter(rows_BLD.values()))[:, :0]
        return Found(rows_BFD, rows_BLD, valid_BL)

    def gathered(self) -> CTRModel | None:
        """The ordinary model with these values, on the CPU, for the first worker; None for the others, who must call
        this too."""
        values = self.gathered_values(self.state_dict())
        if values is None:
            return None
        model = CTRModel(self.layout, self.plan, self.config, self.seed)
        model.load_state_dict(values)
        return model

    def gathered_values(self, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Of every worker's `state_dict` the ordinary model's; as `gathered`, for the first worker."""
        shards = {name.removeprefix(SHARD): value for name, value in values.items() if name.startswith(SHARD)}
        rows_RD = self.gathered_rows(shards)
        scorer = {name: value.cpu() for name, value in values.items() if not name.startswith(SHARD)}
        return None if rows_RD is None else {WHOLE: rows_RD, **scorer}

    def gathered_rows(self, shards: Mapping[str, Tensor]) -> Tensor | None:
        """Of what every worker has for its rows, by table, that of all tables' rows one after another, in the layout's
        order; as `gathered`, for the first worker."""
        first, size = dist.get_rank() == 0, dist.get_world_size()
        found: list[Tensor] = []
        for name in self.layout.table_rows:
            mine = (self.first_row[name], shards[name].cpu()) if name in shards else None
            theirs: list[Any] | None = [None] * size if first else None
            dist.gather_object(mine, theirs)
            parts = sorted((part for part in theirs or () if part), key=lambda part: part[0])
            found += [rows for _, rows in parts]
        return torch.cat(found) if first else None


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

    def sums(self) -> dict[str, Tensor]:
        """The accumulators (r) of this worker's rows, by table."""
        return {
            _table(key): sum_r
            for key, states in sorted(self._fused.state_dict()["state"].items())
            for _, sum_r, _ in _shards(states)
        }

    def state_dict(self) -> dict[str, Any]:
        """`state`: by a number, `sum`, the accumulators of a table."""
        return {"state": {i: {"sum": sum_r} for i, sum_r in enumerate(self.sums().values())}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for i, sum_r in enumerate(self.sums().values()):
            sum_r.copy_(state["state"][i]["sum"])


def demand_plain(layout: Layout, plan: Plan) -> None:
    """Raises NarrowcastError for a plan with a table that TorchRec has no like of."""
    for name in layout.table_rows:
        if not plan.table(name).is_plain(plan.width):
            raise NarrowcastError(
                f"table '{name}' of the plan has a projection, an inner width, shared rows or columns left out, which "
                "tables sharded by TorchRec cannot have: train this plan with training.tables=local"
            )


def _initial_values(layout: Layout, plan: Plan, seed: int, init_std: float, table: str) -> Tensor:
    """A table as the ordinary model draws it, R x D."""
    generator = table_generator(layout, table, seed)
    return TableGroup([plan.table(table)], plan.width, [generator], init_std).weight_Rk.detach()


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
