"""Checks before a run starts, which log warnings or raise errors, in every framework."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from secateur._array import count_true
from secateur.errors import ConfigError
from secateur.masking.run import Run

__all__ = ["refuse_regularizer", "warn_if_already_sparse", "warn_if_no_zeros", "warn_if_pruned_at_once"]

logger = logging.getLogger(__name__)

ALREADY_SPARSE = 0.05
"""Share of zeros from which a warning is logged if the run does not keep them."""


def warn_if_pruned_at_once(runs: Iterable[Run[Any]]) -> None:
    """Log a warning for each run that reaches its target in one update because `end_step` is not set."""
    for config in (run.config for run in runs if run.is_new and not run.updater.is_locked):
        if config.end_step is None and config.sparsity_decay_type != "one_shot":
            logger.warning(
                "end_step is not set, so all of %s is pruned at once at step %d. Set end_step to the step at which "
                "to reach the target, or set sparsity_decay_type='one_shot' if this is intended.",
                config.pattern,
                config.start_step,
            )


def warn_if_already_sparse(runs: Iterable[Run[Any]]) -> None:
    """Log a warning if many weights are already zero and training may change them."""
    free = [run for run in runs if run.is_new and not run.config.keep_zeros and not run.updater.is_locked]
    free = [run for run in free if not run.config.has_regrowth]  # which prunes the smallest weights at once
    weights = [weight.stored for run in free for weight in run.weights.values()]
    total = sum(math.prod(weight.shape) for weight in weights)
    zeros = total - sum(count_true(weight) for weight in weights)
    if total and zeros / total >= ALREADY_SPARSE:
        logger.warning(
            "%.1f %% of the weights to be pruned are already zero and may become nonzero in training, unless a saved "
            "state is loaded next. keep_zeros=True keeps units that are all zero, and kind='pattern_lock' keeps all "
            "zeros.",
            100 * zeros / total,
        )


def warn_if_no_zeros(runs: Iterable[Run[Any]]) -> None:
    """Log a warning if a pattern lock has started with weights without zeros."""
    locked = [weight for run in runs if run.is_new and run.updater.is_locked for weight in run.weights.values()]
    if locked and not any(weight.mask is not None and not weight.mask.all() for weight in locked):
        logger.warning(
            "kind='pattern_lock' keeps zeros, and none of the %d layers has any. Load the pruned weights before "
            "secateur.prepare, unless a saved state is loaded next.",
            len(locked),
        )


def refuse_regularizer(runs: Iterable[Run[Any]]) -> None:
    """Raise `ConfigError` if a run regularizes, which requires the learning rate of an optimizer."""
    for config in (run.config for run in runs):
        if config.reg_type is not None and config.reg_coeff > 0:
            raise ConfigError(
                f"reg_type requires an optimizer, because its strength depends on the learning rate, found "
                f"{config.reg_type!r}. Pass the optimizer to secateur.prepare, or set reg_type=None."
            )
