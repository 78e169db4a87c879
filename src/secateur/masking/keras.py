"""The pruned kernel of a Keras layer and its mask."""

from __future__ import annotations

import keras
import numpy as np

from secateur._array import Array
from secateur.frameworks.keras import apply_mask, get_kernel, read_array
from secateur.masking.weight import PrunedWeight
from secateur.patterns import BasePattern

__all__ = ["KernelWeight"]


class KernelWeight(PrunedWeight):
    """One pruned kernel and its mask. See `PrunedWeight`.

    Args:
        name: Name of the layer.
        pattern: The pattern of the layer.

    Attributes:
        variable: The kernel.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        self.name = name
        self.variable: keras.Variable = get_kernel(pattern.modules[name])
        self._view = pattern.views[name]
        self._mask: Array | None = None

    @property
    def stored(self) -> Array:
        """The kernel as a NumPy array."""
        return read_array(self.variable)

    def canonical(self) -> Array:
        """The kernel as an (O, K, I) NumPy array of at least float32."""
        wide = self._view.to_canonical(self.stored)
        return wide.astype(np.float32) if wide.dtype == np.float16 else wide

    @property
    def mask(self) -> Array | None:
        """The mask as a NumPy array; ``None``: nothing is pruned yet."""
        return self._mask

    @mask.setter
    def mask(self, mask: Array) -> None:
        self._mask = mask

    def apply_mask(self) -> None:
        """Set pruned weights to zero."""
        if self._mask is not None:
            apply_mask(self.variable, self._mask)
