"""The multi-layer perceptron that the heads share."""

from collections.abc import Sequence

from torch import nn


def mlp(num_inputs: int, hidden: Sequence[int], dropout: float, num_outputs: int | None = None) -> nn.Sequential:
    """Linear, ReLU and dropout for every hidden width, then a plain linear layer where `num_outputs` is given."""
    layers: list[nn.Module] = []
    for num_units in hidden:
        layers += [nn.Linear(num_inputs, num_units), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        num_inputs = num_units
    if num_outputs is not None:
        layers.append(nn.Linear(num_inputs, num_outputs))
    return nn.Sequential(*layers)
