"""A pruned kernel of a Keras model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from secateur._array import Array, clear_outside
from secateur.patterns import BasePattern
from secateur.patterns.keras import kernel as kernel_of
from secateur.patterns.keras import tensor_of

__all__ = ["KernelWeight", "zero_out"]


class KernelWeight:
    """One pruned kernel and its mask. See `HeldWeight`.

    Args:
        name: Layer name.
        pattern: The pattern, bound to the layer.

    Attributes:
        variable: The kernel.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        self.name = name
        self.variable: keras.Variable = kernel_of(pattern.modules[name])
        self._pattern = pattern
        self._view = pattern.views[name]
        self._mask: Array | None = None

    @property
    def stored(self) -> Array:
        """The kernel as a NumPy array."""
        return self._pattern.as_array(self.variable)

    def canonical(self) -> Array:
        """The kernel as an (O, K, I) NumPy array of at least float32."""
        wide = self._view.canonical(self.stored)
        return wide.astype(np.float32) if wide.dtype == np.float16 else wide

    @property
    def mask(self) -> Array | None:
        """The mask as a NumPy array; ``None``: nothing is pruned yet."""
        return self._mask

    @mask.setter
    def mask(self, mask: Array) -> None:
        self._mask = mask

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes."""
        if self._mask is not None:
            zero_out(self.variable, self._mask)


def zero_out(variable: keras.Variable, mask: Any) -> None:
    """Leave the values of `variable` where `mask`, and set the others to exactly 0.0, whatever stood there."""
    values, keep = tensor_of(variable), tensor_of(mask)
    if keras.backend.backend() == "torch":
        clear_outside(values.detach(), keep)  # in place, as the optimizers do on torch
    else:
        variable.assign(ops.where(keep, values, ops.zeros((), dtype=values.dtype)))
