"""Layers for inference that store pruned weights without the zeros."""

from __future__ import annotations

from secateur.runtime.pytorch.layers.base import SparseLayer
from secateur.runtime.pytorch.layers.channels import ChannelConv2d, ChannelLinear
from secateur.runtime.pytorch.layers.conv import SparseConv2d
from secateur.runtime.pytorch.layers.library import LibraryLinear
from secateur.runtime.pytorch.layers.packed import SparseLinear

__all__ = ["ChannelConv2d", "ChannelLinear", "LibraryLinear", "SparseConv2d", "SparseLayer", "SparseLinear"]
