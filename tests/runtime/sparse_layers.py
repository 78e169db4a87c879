"""Layers with some zeros, dense and replaced, without any timing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch import SparseConv2d, SparseLinear, benchmark, compilation, interleaved_timing
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight

__all__ = ["conv_pair", "linear_pair", "replace_always"]


def linear_pair(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, SparseLinear]:
    """A dense layer of 32 inputs and 24 outputs, and the same replaced."""
    torch.manual_seed(0)
    dense = nn.Linear(32, 24).to(dtype).eval()
    with torch.no_grad():
        dense.weight.view(6, 4, 32)[torch.rand(6, 32).lt(0.6)[:, None].expand(6, 4, 32)] = 0
    stored = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    return dense, SparseLinear(
        dense, PackedMatrix.from_dense(RecognizedWeight.from_layer(dense).matrix.numpy(), "4x1", stored)
    )


def conv_pair() -> tuple[nn.Conv2d, SparseConv2d]:
    """A dense convolution of 4 channels to 8, and the same replaced."""
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 8, 3, padding=(2, 1), stride=2).eval()
    with torch.no_grad():
        dense.weight[torch.rand_like(dense.weight).lt(0.5)] = 0
    return dense, SparseConv2d(dense, PackedMatrix.from_dense(RecognizedWeight.from_layer(dense).matrix.numpy(), "1x1"))


@contextmanager
def replace_always(*, is_quick: bool = True) -> Iterator[None]:
    """Replace every layer that can be.

    Args:
        is_quick: Whether to measure as little as possible.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MAX_TIME_RATIO", float("inf"))
        patch.setattr(compilation, "MIN_SPEEDUP_ALONE", 0.0)
        patch.setattr(compilation, "MAX_MODEL_TIME_RATIO", float("inf"))
        if is_quick:
            patch.setattr("secateur.runtime.pytorch.timing.MIN_ROUNDS", 1)
            patch.setattr(benchmark, "CPU_BUDGET", 0.0)
            patch.setattr(interleaved_timing, "BUDGET", 0.0)
        yield
