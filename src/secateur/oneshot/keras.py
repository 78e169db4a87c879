"""Pruning a Keras model once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from secateur.config import PruningConfig
from secateur.oneshot.magnitude import at_once, prune_weights
from secateur.planning.keras import plan
from secateur.training.keras.kernel import Kernel
from secateur.training.result import PruningReport

__all__ = ["prune"]


def prune(model: keras.Model, config: PruningConfig | Mapping[str, Any]) -> PruningReport:
    """See `secateur.prune`."""
    made = plan(model, at_once(config), prune_frozen=True)
    kernels = {name: Kernel(name, pattern) for pattern in made.patterns for name in pattern.views}
    return prune_weights(made, kernels, model.count_params())
