"""Provide the names of `neural_compressor.compression.pruner.pruners.block_mask`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import RunOnlyPruner, register_pruner

__all__ = ["PytorchBlockMaskPruner"]


@register_pruner("pt_block_mask")
class PytorchBlockMaskPruner(RunOnlyPruner):
    """Prunes units by the gradients of their masks."""
