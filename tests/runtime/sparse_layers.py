"""Pruned layers and their replacements, created without benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch import SparseConv2d, SparseLinear, baselines, benchmark, compilation, interleaved_timing
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight

__all__ = ["make_conv_pair", "make_linear_pair", "replace_always"]


def make_linear_pair(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, SparseLinear]:
    """Make a dense layer with 32 inputs and 24 outputs, and its replacement."""
    torch.manual_seed(0)
    dense = nn.Linear(32, 24).to(dtype).eval()
    with torch.no_grad():
        dense.weight.view(6, 4, 32)[torch.rand(6, 32).lt(0.6)[:, None].expand(6, 4, 32)] = 0
    stored = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    return dense, SparseLinear(
        dense, PackedMatrix.from_dense(RecognizedWeight.from_layer(dense).matrix.numpy(), "4x1", stored)
    )


def make_conv_pair() -> tuple[nn.Conv2d, SparseConv2d]:
    """Make a dense convolution with 4 input and 8 output channels, and its replacement."""
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 8, 3, padding=(2, 1), stride=2).eval()
    with torch.no_grad():
        dense.weight[torch.rand_like(dense.weight).lt(0.5)] = 0
    return dense, SparseConv2d(dense, PackedMatrix.from_dense(RecognizedWeight.from_layer(dense).matrix.numpy(), "1x1"))


@contextmanager
def replace_always(*, is_quick: bool = True) -> Iterator[None]:
    """Replace all supported layers.

    Args:
        is_quick: Whether to take as few measurements as possible.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MAX_TIME_RATIO", float("inf"))
        patch.setattr(compilation, "MIN_SPEEDUP_ALONE", 0.0)
        patch.setattr(compilation, "MAX_MODEL_TIME_RATIO", float("inf"))
        if is_quick:
            patch.setattr("secateur.runtime.pytorch.timing.MIN_ROUNDS", 1)
            patch.setattr(benchmark, "CPU_BUDGET", 0.0)
            patch.setattr(interleaved_timing, "BUDGET", 0.0)
            patch.setattr(baselines, "BUDGET", 0.0)
        yield
