"""Train DeepFM with narrowcast, with the options and the answer that the peers' runners have."""

import re
from importlib.metadata import version

import torch
from peers.side import answer, options, read

from narrowcast.components.data.encoded import EncodedData
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.fit import TrainConfig, fit
from narrowcast.components.train.plan import full_plan
from narrowcast.components.train.predict import predict

RATE = re.compile(r"([\d,]+) rows/s")


def rates(lines: list[str]) -> list[float]:
    """Rows a second of every epoch, from what training tells of it; validation is not in them."""
    return [float(rate.replace(",", "")) for rate in RATE.findall("\n".join(lines))]


def main() -> None:
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--table-optimiser", default="lazy_adam", help="what moves the embedding rows")
    parser.add_argument("--table-learning-rate", type=float, help="theirs, where it is not that of all else")
    parser.add_argument("--init-std", type=float, default=0.01, help="deviation of the tables' initial values")
    parser.add_argument("--precision", default="float32", help="of matrix products; or bfloat16")
    chosen = parser.parse_args()
    read(chosen.encoded)
    torch.set_num_threads(chosen.threads)
    data = EncodedData(chosen.encoded)
    config = TrainConfig(
        model=ModelConfig(backbone="deepfm", hidden=tuple(chosen.hidden), init_std=chosen.init_std),
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        table_optimiser=chosen.table_optimiser,
        table_learning_rate=chosen.table_learning_rate,
        weight_decay=chosen.l2,
        patience=chosen.epochs,
        seed=chosen.seed,
        precision=chosen.precision,
        deterministic=False,
    )
    lines: list[str] = []
    state = fit(data, full_plan(data.layout.table_rows, chosen.width), config, tell=lines.append)
    splits = ("validation", "test") if chosen.scores else ()
    scores = {split: predict(state.model, data.split(split)) for split in splits}
    seconds = [len(data.split("train")) / rate for rate in rates(lines)]
    answer(chosen, "narrowcast", version("narrowcast"), seconds, scores)


if __name__ == "__main__":
    main()
