"""Probabilities of a whole split."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from narrowcast.components.data.encoded import Split
from narrowcast.components.train.model import to_tensors


@torch.no_grad()
def predict(model: nn.Module, split: Split, batch_size: int = 8192) -> NDArray[np.float32]:
    """The click probability of every row in stored order, float32, B. The model's training mode is left as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = [
        torch.sigmoid(model(*to_tensors(batch, device)).float()).cpu().numpy() for batch, _ in split.batches(batch_size)
    ]
    model.train(was_training)
    return np.concatenate(found) if found else np.zeros(0, np.float32)
