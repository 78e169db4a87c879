"""Kernels for N:M sparsity such as ``2:4``."""

from __future__ import annotations

from secateur.runtime.kernels.nm.output_pairs import OutputPairPanelKernel, OutputPairSmallBatchKernel
from secateur.runtime.kernels.nm.panel import NMPanelKernel
from secateur.runtime.kernels.nm.small_batch import NMSmallBatchKernel

__all__ = ["NMPanelKernel", "NMSmallBatchKernel", "OutputPairPanelKernel", "OutputPairSmallBatchKernel"]
