"""Kernels for unstructured sparsity."""

from __future__ import annotations

from secateur.runtime.kernels.unstructured.panel import UnstructuredPanelKernel
from secateur.runtime.kernels.unstructured.small_batch import UnstructuredSmallBatchKernel

__all__ = ["UnstructuredPanelKernel", "UnstructuredSmallBatchKernel"]
