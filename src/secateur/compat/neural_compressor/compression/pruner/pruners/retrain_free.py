"""Provide the names of `neural_compressor.compression.pruner.pruners.retrain_free`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["PytorchRetrainFreePruner"]


@register_pruner("pt_retrain_free")
class PytorchRetrainFreePruner(RunOnlyPruner):
    """Prunes in one shot with calibration data."""
