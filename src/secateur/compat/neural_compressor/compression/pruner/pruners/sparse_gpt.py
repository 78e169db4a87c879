"""Provide the names of `neural_compressor.compression.pruner.pruners.sparse_gpt`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["SparseGPTPruner"]


@register_pruner("pt_sparse_gpt")
class SparseGPTPruner(RunOnlyPruner):
    """Prunes in one shot with SparseGPT."""
