"""Provide the names of `neural_compressor.compression.pruner.pruners.progressive`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["PytorchProgressivePruner"]


@register_pruner("pt_progressive")
class PytorchProgressivePruner(RunOnlyPruner):
    """Prunes the units of an update in parts."""
