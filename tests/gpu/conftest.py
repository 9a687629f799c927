"""Tests of training on a GPU; skipped where there is none."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
