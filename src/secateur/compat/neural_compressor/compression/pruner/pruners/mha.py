"""Provide the names of `neural_compressor.compression.pruner.pruners.mha`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["PythonMultiheadAttentionPruner"]


@register_pruner("pt_mha")
class PythonMultiheadAttentionPruner(RunOnlyPruner):
    """Prunes attention heads."""
