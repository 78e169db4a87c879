"""Torch models, layer by layer."""

from __future__ import annotations

from secateur.runtime.pytorch.channels import ChannelLinear
from secateur.runtime.pytorch.compiling import compile_model
from secateur.runtime.pytorch.layers import ExchangedLayer, SparseConv2d, SparseLinear

__all__ = ["ChannelLinear", "ExchangedLayer", "SparseConv2d", "SparseLinear", "compile_model"]
