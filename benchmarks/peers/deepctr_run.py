"""Train DeepFM with DeepCTR-Torch on arrays that narrowcast encoded; runs in the peers' environment."""

import time

import deepctr_torch
import numpy as np
import torch
from deepctr_torch.callbacks import Callback
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DeepFM
from side import Encoded, answer, options, read
from sklearn.metrics import roc_auc_score


class Epochs(Callback):
    """Times the epochs, and keeps the weights of the one best on validation."""

    def __init__(self, inputs: dict[str, np.ndarray], label_B: np.ndarray, batch_size: int) -> None:
        super().__init__()
        self.inputs, self.label_B, self.batch_size = inputs, label_B, batch_size
        self.seconds: list[float] = []
        self.best_auc, self.best = 0.0, {}

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        auc = roc_auc_score(self.label_B, self.model.predict(dict(self.inputs), self.batch_size))
        self.model.train()
        if auc > self.best_auc:
            self.best_auc = auc
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}


def columns(data: Encoded, split: str) -> dict[str, np.ndarray]:
    ids_BF = data.ids(split)
    return {field: np.ascontiguousarray(ids_BF[:, i]) for i, field in enumerate(data.fields)}


def main() -> None:
    chosen = options(__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(chosen.threads)
    data = read(chosen.encoded)
    if max(data.rows) > 1 << 24:
        raise SystemExit("DeepCTR-Torch keeps ids as float32, which cannot tell more than 16,777,216 of them apart")
    features = [SparseFeat(f, rows, embedding_dim=chosen.width) for f, rows in zip(data.fields, data.rows, strict=True)]
    model = DeepFM(
        features,
        features,
        dnn_hidden_units=tuple(chosen.hidden),
        l2_reg_embedding=chosen.l2,
        l2_reg_linear=chosen.l2,
        seed=chosen.seed,
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=chosen.learning_rate), "binary_crossentropy")
    epochs = Epochs(columns(data, "validation"), data.labels("validation"), chosen.batch_size)
    label_B = np.asarray(data.labels("train"), np.float32)
    model.fit(columns(data, "train"), label_B, chosen.batch_size, epochs=chosen.epochs, verbose=0, callbacks=[epochs])
    model.load_state_dict(epochs.best)
    splits = ("validation", "test") if chosen.scores else ()
    scores = {split: model.predict(columns(data, split), chosen.batch_size) for split in splits}
    answer(chosen, "DeepCTR-Torch", deepctr_torch.__version__, epochs.seconds, scores)


if __name__ == "__main__":
    main()
