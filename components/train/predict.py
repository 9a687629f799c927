"""Probabilities of a whole split."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from narrowcast.components.data.encoded import Split
from narrowcast.components.train.model import to_tensors
from narrowcast.components.train.workers import ALONE, Workers


@torch.no_grad()
def predict(model: nn.Module, split: Split, batch_size: int = 8192, workers: Workers = ALONE) -> NDArray[np.float32]:
    """The click probability of every row in stored order, float32, B. The model's training mode is left as it was.

    Workers share every batch, of `batch_size` rows for each, and all of them get all rows. So they call the model
    equally often, some perhaps on no rows, as a model whose tables lie spread over them needs.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = [np.zeros(0, np.float32)]
    step = batch_size * workers.size
    for start in range(0, len(split), step):
        bounds = np.linspace(start, min(start + step, len(split)), workers.size + 1).astype(int)
        mine = split.inputs.take(slice(bounds[workers.rank], bounds[workers.rank + 1]))
        probability_B = torch.sigmoid(model(*to_tensors(mine, device)).float()).cpu().numpy()
        found.append(workers.concatenate(probability_B, np.diff(bounds).tolist()))
    model.train(was_training)
    return np.concatenate(found)
