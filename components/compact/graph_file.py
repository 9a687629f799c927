"""Tracing the graph of a packed model and saving it as an ONNX file.

Shape letters: B rows, F categorical fields, N numeric fields, L sequence length, S rows of a sequence input.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from narrowcast.components.compact.graph import GraphNetwork
from narrowcast.components.compact.onnx_model import DENSE, IDS, PROBABILITY, sequence_input
from narrowcast.errors import NarrowcastError

OPSET = 20
"""Of the standard operators; the graph has no others."""
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
"""Of the extra `onnx`."""
TRACED = (6, 3, 4)
"""Rows, histories and sequence length that the graph is traced with: it takes any, but a trace with 1 would not."""
INLINE_BYTES = 1 << 30
"""Weights beyond this lie in a file beside the graph: an ONNX file holds at most 2 GiB."""


def write_graph(network: GraphNetwork, path: Path) -> None:
    """Save `network` for any number of rows, histories and lengths; it is made ready for inference by this.

    More than a GiB of weights goes to a file of their own, named as the graph's and `.data`. Raises NarrowcastError
    where the libraries of the extra `onnx` are not installed.
    """
    require_onnx()
    import onnx_ir

    layout, any_size = network.layout, torch.export.Dim.DYNAMIC
    num_rows, num_histories, length = TRACED
    ids_BF = torch.zeros(num_rows, len(layout.categorical), dtype=torch.int64)
    dense_BN = torch.zeros(num_rows, len(layout.numeric))
    sequences = {name: torch.zeros(num_histories, length, dtype=torch.int64) for name in layout.sequences}
    model = to_onnx(
        network,
        (ids_BF, dense_BN, sequences),
        ({0: any_size}, {0: any_size}, {name: {0: any_size, 1: any_size} for name in sequences}),
        [IDS, DENSE, *map(sequence_input, sequences)],
        [PROBABILITY],
    )
    for value in model.graph.inputs:
        if value.name in (IDS, DENSE):
            value.shape = onnx_ir.Shape(["B", value.shape[1]])
        else:
            value.shape = onnx_ir.Shape([f"S_{value.name}", f"L_{value.name}"])
    model.graph.outputs[0].shape = onnx_ir.Shape(["B"])
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if weights > INLINE_BYTES else None)


def require_onnx() -> None:
    """Raises NarrowcastError where a library of the extra `onnx` is not installed."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise NarrowcastError(f"{name} is not installed, which export needs: pip install 'narrowcast[onnx]'")


@torch.no_grad()
def to_onnx(
    module: nn.Module,
    inputs: tuple[Any, ...],
    sizes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> Any:
    """The module as a model of `onnx_ir`. `sizes`: which of the inputs' sizes vary, as `torch.export` takes them."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with quiet():
        program = torch.export.export(
            module.eval().requires_grad_(False),
            inputs,
            dynamic_shapes=sizes,
            prefer_deferred_runtime_asserts_over_guards=True,  # that a sequence's rows divide the batch's
        )
        made = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table={torch.ops.aten.bitwise_right_shift.Tensor: shift_right},
            verbose=False,
        )
    assert made is not None
    ClearMetadataAndDocStringPass()(made.model)  # which is file names and line numbers of this machine
    return made.model


def shift_right(stored: Any, places: Any) -> Any:
    """The operator for unsigned integers, which all that the graph shifts are; torch's own translation minds a sign."""
    from onnxscript import opset20

    return opset20.BitShift(stored, places, direction="RIGHT")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter says about libraries that are of no use here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
