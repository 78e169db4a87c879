"""Compile torch models: benchmark sparse layers and replace the dense ones that are slower."""

from __future__ import annotations

from secateur.runtime.pytorch.compilation import compile_model
from secateur.runtime.pytorch.layers import (
    ChannelConv2d,
    ChannelLinear,
    LibraryLinear,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
)

__all__ = [
    "ChannelConv2d",
    "ChannelLinear",
    "LibraryLinear",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "compile_model",
]
