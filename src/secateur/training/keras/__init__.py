"""Prune a Keras model while it trains, on every backend."""

from __future__ import annotations

from typing import Any

import keras

from secateur._deprecated import serve_old_names
from secateur.config import ConfigLike
from secateur.training.keras.callback import PruningCallback
from secateur.training.keras.compiled import finalize, find_pruning_optimizer, prepare_compiled
from secateur.training.keras.optimizer import PruningOptimizer

__all__ = ["PruningCallback", "PruningOptimizer", "finalize", "find_pruning_optimizer", "prepare"]

__getattr__ = serve_old_names(
    __name__,
    {
        "UpdateMasks": "secateur.keras:PruningCallback",
        "pruning_optimizer": "secateur.training.keras:find_pruning_optimizer",
    },
)


def prepare(
    model: keras.Model,
    config: ConfigLike,
    optimizer: keras.optimizers.Optimizer | None = None,
    *,
    example_inputs: Any = None,
) -> PruningOptimizer:
    """See `secateur.prepare`."""
    if optimizer is None:
        return prepare_compiled(model, config, example_inputs)
    return PruningOptimizer(model, config, optimizer, example_inputs=example_inputs)
