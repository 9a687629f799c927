"""Train DeepFM with FuxiCTR on arrays that narrowcast encoded; runs in the peers' environment.

The wheel has the layers, the training loop and the loader but not the model zoo, so DeepFM is put together here from
its layers as its zoo does.
"""

import tempfile
import time
from pathlib import Path

import fuxictr
import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from side import Encoded, answer, options, read

LABEL = "label"


class DeepFM(BaseModel):
    """FuxiCTR's trainer, timed: `epoch_seconds` leaves its evaluations and checkpoints out."""

    def __init__(self, feature_map: FeatureMap, *, width: int, hidden: list[int], learning_rate: float, **base) -> None:
        super().__init__(feature_map, **base)
        self.embedding_layer = FeatureEmbedding(feature_map, width)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=hidden, output_dim=1)
        self.compile("adam", "binary_crossentropy", learning_rate)
        self.reset_parameters()
        self.epoch_seconds: list[float] = []
        self.evaluation_seconds = 0.0

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = self.get_inputs(inputs)
        rows_BFD = self.embedding_layer(ids)
        logit_B1 = self.fm(ids, rows_BFD) + self.mlp(rows_BFD.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit_B1)}

    def train_epoch(self, data_generator) -> None:
        started, self.evaluation_seconds = time.perf_counter(), 0.0
        super().train_epoch(data_generator)
        self.epoch_seconds.append(time.perf_counter() - started - self.evaluation_seconds)

    def eval_step(self) -> None:
        started = time.perf_counter()
        super().eval_step()
        self.evaluation_seconds += time.perf_counter() - started


def feature_map(data: Encoded, width: int, folder: Path) -> FeatureMap:
    made = FeatureMap("encoded", str(folder))
    made.labels = [LABEL]
    made.default_emb_dim = width
    for field, rows in zip(data.fields, data.rows, strict=True):
        made.features[field] = {"source": "", "type": "categorical", "vocab_size": rows}
    made.num_fields = made.get_num_fields()
    made.set_column_index()
    return made


def write_npz(data: Encoded, split: str, folder: Path) -> str:
    ids_BF = data.ids(split)
    columns = {field: ids_BF[:, i] for i, field in enumerate(data.fields)}
    np.savez(folder / f"{split}.npz", **columns, **{LABEL: data.labels(split)})
    return str(folder / f"{split}.npz")


def main() -> None:
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--loader-workers", type=int, default=1, help="processes of its loader (its default: 1)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    seed_everything(chosen.seed)
    data = read(chosen.encoded)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "encoded").mkdir()
        files = {split: write_npz(data, split, folder) for split in ("train", "validation", "test")}
        features = feature_map(data, chosen.width, folder)
        loading = {"batch_size": chosen.batch_size, "num_workers": chosen.loader_workers}
        train, validation, test = RankDataLoader(
            features, train_data=files["train"], valid_data=files["validation"], test_data=files["test"], **loading
        )
        model = DeepFM(
            features,
            width=chosen.width,
            hidden=chosen.hidden,
            learning_rate=chosen.learning_rate,
            embedding_regularizer=chosen.l2 or None,
            early_stop_patience=chosen.epochs,
            metrics=["AUC", "logloss"],
            model_root=scratch,
            verbose=0,
        )
        model.fit(train, epochs=chosen.epochs, validation_data=validation)
        scores = {"validation": model.predict(validation), "test": model.predict(test)} if chosen.scores else {}
    answer(chosen, "FuxiCTR", fuxictr.__version__, model.epoch_seconds, scores)


if __name__ == "__main__":
    main()
