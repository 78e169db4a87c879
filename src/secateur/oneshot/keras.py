"""Pruning a Keras model once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from secateur.config import PruningConfig
from secateur.errors import UnsupportedModelError
from secateur.masking.keras import KernelWeight
from secateur.oneshot.magnitude import drop_schedule, prune_weights
from secateur.planning.keras import plan
from secateur.results import PruningReport

__all__ = ["prune"]


def prune(model: keras.Model, config: PruningConfig | Mapping[str, Any], **options: Any) -> PruningReport:
    """See `secateur.prune`; of its other arguments, only the defaults.

    Raises:
        UnsupportedModelError: A solver that reads calibration data, or a refiner, is asked for.
    """
    if asked := [name for name, value in options.items() if not _is_default(value)]:
        raise UnsupportedModelError(
            f"{asked[0]} serves torch models only, and this is a Keras model. Leave it out to prune by magnitude."
        )
    made = plan(model, drop_schedule(config), prune_frozen=True)
    kernels = {name: KernelWeight(name, pattern) for pattern in made.patterns for name in pattern.views}
    return prune_weights(made, kernels, model.count_params())


def _is_default(value: Any) -> bool:
    """Whether it asks for nothing; an array must not be asked whether it equals something."""
    return value is None or (isinstance(value, (list, str, tuple)) and value in ([], (), "magnitude"))
