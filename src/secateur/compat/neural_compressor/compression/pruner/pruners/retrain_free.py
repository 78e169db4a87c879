"""A name of `neural_compressor.compression.pruner.pruners.retrain_free`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["PytorchRetrainFreePruner"]


@register_pruner("pt_retrain_free")
class PytorchRetrainFreePruner(RunOnlyPruner):
    """Prunes at once, with calibration data."""
