"""Kernels for block patterns such as ``4x1``."""

from __future__ import annotations

from secateur.runtime.kernels.block.panel import BlockPanelKernel
from secateur.runtime.kernels.block.small_batch import BlockSmallBatchKernel

__all__ = ["BlockPanelKernel", "BlockSmallBatchKernel"]
