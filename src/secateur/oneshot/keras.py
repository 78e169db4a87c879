"""Prune a Keras model in one shot."""

from __future__ import annotations

from typing import Any

import keras

from secateur.config import ConfigLike
from secateur.errors import UnsupportedModelError
from secateur.masking.keras import KernelWeight
from secateur.oneshot.magnitude import drop_schedule, prune_weights
from secateur.planning.keras import plan
from secateur.results import PruningReport, SensitivityReport

__all__ = ["is_leader", "prune"]


def prune(
    model: keras.Model, config: ConfigLike, *, allocation: Any = None, example_inputs: Any = None, **options: Any
) -> PruningReport:
    """See `secateur.prune`; `allocation` must be a sensitivity report, and the other arguments have their defaults.

    Raises:
        UnsupportedModelError: An argument that only torch models support is set.
    """
    sensitivity = allocation if isinstance(allocation, SensitivityReport) else None
    if sensitivity is None:
        options["allocation"] = allocation
    if unsupported := [name for name, value in options.items() if not _is_default(value)]:
        raise UnsupportedModelError(
            f"{unsupported[0]} supports torch models only, and this is a Keras model. "
            f"Leave it out to prune by magnitude."
        )
    model_plan = plan(model, drop_schedule(config), example_inputs=example_inputs, prune_frozen=True)
    kernels = {name: KernelWeight(name, pattern) for pattern in model_plan.patterns for name in pattern.views}
    return prune_weights(model_plan, kernels, model.count_params(), source=sensitivity)


def is_leader(calibration: Any, execution: Any) -> bool:
    """Whether this process shows the progress; each prunes a Keras model on its own."""
    del calibration, execution
    return True


def _is_default(value: Any) -> bool:
    """Whether a value is a default; arrays are not compared, because their comparison is elementwise."""
    return value is None or value is False or (isinstance(value, (list, str, tuple)) and value in ([], (), "magnitude"))
