"""Accept the arguments of `PruningOptimizer` in the order and under the names of earlier versions."""

from __future__ import annotations

from typing import Any

import keras

from secateur._deprecated import warn_deprecated

__all__ = ["accept_old_arguments"]


def accept_old_arguments(model: Any, optimizer: Any, inner_optimizer: Any) -> tuple[Any, Any]:
    """Accept ``PruningOptimizer(inner_optimizer, config, model)``, the order of arguments of version 0.1."""
    if inner_optimizer is not None:
        warn_deprecated("PruningOptimizer(inner_optimizer=...)", "PruningOptimizer(optimizer=...)", stacklevel=4)
        optimizer = inner_optimizer
    if isinstance(optimizer, keras.Model):
        old, new = "PruningOptimizer(optimizer, config, model)", "PruningOptimizer(model, config, optimizer)"
        warn_deprecated(old, new, stacklevel=4)
        model, optimizer = optimizer, model
    return model, optimizer
