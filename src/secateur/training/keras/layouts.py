"""The layouts of a run's variables if `keras.distribution` distributes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

__all__ = ["distribute_values", "get_replicated_layout"]


def get_replicated_layout(rank: int) -> Any:
    """Return the layout of a variable of which each device has a copy; ``None``: nothing is distributed.

    Variables without a layout get that of the first key of a `keras.distribution.LayoutMap` that matches their name,
    which may be meant for the kernels of the layer that they are named after.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    return keras.distribution.TensorLayout([None] * rank, distribution.device_mesh)


def distribute_values(variables: Sequence[keras.Variable], scope: keras.StatelessScope) -> list[Any]:
    """Return the values of variables in a scope, each on the devices of its variable.

    Assignments in a scope do not move values, and a step would be compiled again for other devices.
    """
    return [_distribute(scope.get_current_value(variable), variable) for variable in variables]


def _distribute(value: Any, variable: keras.Variable) -> Any:
    layout = getattr(variable, "_layout", None)
    return value if layout is None else keras.distribution.distribute_tensor(value, layout)
