"""Pruners that rank by a criterion, as `neural_compressor.compression.pruner.pruners.basic`."""

from __future__ import annotations

from typing import Any

from secateur.compat.neural_compressor.compression.pruner.criteria import get_criterion
from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.pruners.base import (
    KerasBasePruner,
    MaskedPruner,
    PytorchBasePruner,
    register_pruner,
)
from secateur.compat.neural_compressor.compression.pruner.regs import get_reg
from secateur.compat.neural_compressor.compression.pruner.schedulers import get_scheduler
from secateur.compat.neural_compressor.compression.pruner.tf_criteria import get_tf_criterion

__all__ = ["KerasBasicPruner", "PytorchBasicPruner"]


class CriterionPruner(MaskedPruner):
    """Prunes the units that a criterion ranks lowest, to the sparsity of the scheduler.

    Attributes:
        pattern: The pattern.
        scheduler: The scheduler.
        criterion: The criterion.
        reg: The regularizer.
    """

    pattern: Any
    scheduler: Any
    criterion: Any
    reg: Any

    def _init(self) -> None:
        self.pattern = get_pattern(self.config, self.modules, self.framework)
        self.scheduler = get_scheduler(self.config)
        self.criterion = self._make_criterion()
        self.reg = get_reg(self.config, self.modules, self.pattern)

    def _make_criterion(self) -> Any:
        return get_criterion(self.config, self.modules, self.pattern)

    def set_global_step(self, global_step: int) -> None:
        """Set the number of optimizer steps."""
        self.global_step = global_step

    def update_masks(self, local_step: int) -> None:  # noqa: ARG002 - part of the interface
        """Prune units if an update is due."""
        if self.global_step == self.start_step and self.config["lock_init_sparsity"]:
            self.masks = self.pattern.get_pattern_lock_masks(self.modules)
            self.init_sparsity_ratio = self.current_sparsity_ratio = self.pattern.get_sparsity_ratio(self.masks)
        if not self.check_is_pruned_step(self.global_step):
            return
        if self.current_sparsity_ratio > self.target_sparsity_ratio:
            return
        self.criterion.on_step_begin()
        counts = self.completed_pruned_cnt, self.total_prune_cnt
        sparsity = self.scheduler.update_sparsity_ratio(
            self.target_sparsity_ratio, *counts, self.masks, self.init_sparsity_ratio
        )
        self.completed_pruned_cnt += 1
        if not self.criterion.scores:
            return
        self.masks = self.pattern.get_masks(self.criterion.scores, sparsity, self.masks)
        self.mask_weights()
        self.current_sparsity_ratio = self.pattern.get_sparsity_ratio(self.masks)

    def on_before_optimizer_step(self) -> None:
        """Call the regularizer and the criterion."""
        self.reg.on_before_optimizer_step()
        self.criterion.on_before_optimizer_step()

    def on_after_optimizer_step(self) -> None:
        """Regularize between ``start_step`` and ``end_step``, set pruned weights to zero, and count the step."""
        if self.start_step <= self.global_step <= self.end_step:
            self.reg.on_after_optimizer_step()
        super().on_after_optimizer_step()


@register_pruner("pt_basic")
class PytorchBasicPruner(CriterionPruner, PytorchBasePruner):
    """Prunes torch modules."""


@register_pruner("keras_basic")
class KerasBasicPruner(CriterionPruner, KerasBasePruner):
    """Prunes Keras layers."""

    def _make_criterion(self) -> Any:
        return get_tf_criterion(self.config, self.modules)
