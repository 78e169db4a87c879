"""Pruners that keep zeros, as `neural_compressor.compression.pruner.pruners.pattern_lock`."""

from __future__ import annotations

from typing import Any

from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.pruners.base import PytorchBasePruner, register_pruner

__all__ = ["PytorchPatternLockPruner"]


@register_pruner("pt_pattern_lock")
class PytorchPatternLockPruner(PytorchBasePruner):
    """Keeps the zeros that weights have at ``start_step``.

    Attributes:
        pattern: The pattern.
    """

    pattern: Any

    def _init(self) -> None:
        self.pattern = get_pattern(self.config, self.modules)

    def update_masks(self, local_step: int) -> None:  # noqa: ARG002 - part of the interface
        """Read the masks from the weights, if an update is due."""
        if self.check_is_pruned_step(self.global_step):
            self.masks = self.pattern.get_pattern_lock_masks(self.modules)
