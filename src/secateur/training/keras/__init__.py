"""Pruning while a Keras model trains, on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from secateur.config import PruningConfig
from secateur.training.keras.callback import UpdateMasks, pruning_optimizer
from secateur.training.keras.ending import finalize
from secateur.training.keras.optimizer import PruningOptimizer

__all__ = ["PruningOptimizer", "UpdateMasks", "finalize", "prepare", "pruning_optimizer"]


def prepare(
    model: keras.Model, config: PruningConfig | Mapping[str, Any], *, optimizer: keras.optimizers.Optimizer
) -> PruningOptimizer:
    """See `secateur.prepare`."""
    return PruningOptimizer(optimizer, config, model)
