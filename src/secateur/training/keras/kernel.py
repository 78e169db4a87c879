"""A pruned kernel of a Keras model that trains."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from secateur._array import Array
from secateur.criteria import BaseCriterion
from secateur.masking.keras import KernelWeight, zero_out
from secateur.patterns import BasePattern
from secateur.patterns.keras import handed_over
from secateur.training.keras.graph_array import as_array, as_tensor
from secateur.training.keras.home import Home

__all__ = ["Kernel"]

STRIP = 32
"""Rows that are turned into columns together: few enough for a core's cache."""


class Kernel(KernelWeight):
    """A kernel that an optimizer trains: its mask may be a variable, and a compiled step can compute with both.

    Args:
        name: Layer name.
        pattern: The pattern, bound to the layer.

    Attributes:
        mask_variable: Booleans in the kernel's shape, ``True`` = kept; ``None``: kept on the host only.
        home: The optimizer that changes it; ``None``: none does.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        super().__init__(name, pattern)
        self.mask_variable: keras.Variable | None = None
        self.home: Home | None = None

    @property
    def mask(self) -> Array | None:
        """The mask as a NumPy array; ``None``: nothing is pruned yet."""
        return self._mask if self.mask_variable is None else self._pattern.as_array(self.mask_variable)

    @mask.setter
    def mask(self, mask: Array) -> None:
        if self.mask_variable is None:
            self._mask = mask
        else:
            self.mask_variable.assign(handed_over(in_order(mask)))

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes, in the kernel and in the average that its optimizer keeps of it."""
        mask = self._mask if self.mask_variable is None else self.mask_variable
        if mask is None:
            return
        zero_out(self.variable, mask)
        average = None if self.home is None else self.home.average()
        if average is not None:
            zero_out(average, mask)

    def traced(self, tensor: Any = None) -> Any:
        """The kernel, or a tensor of its shape, as an (O, K, I) array that a compiled step computes with."""
        return self._view.canonical(self.traced_as_stored(tensor))

    def traced_as_stored(self, tensor: Any = None) -> Any:
        """The same in the kernel's shape."""
        array = as_array(self.variable if tensor is None else tensor)
        if keras.backend.standardize_dtype(array.dtype) in ("float16", "bfloat16"):
            return as_array(ops.cast(as_tensor(array), "float32"))
        return array

    def traced_scores(self, criterion: BaseCriterion, gradient: Any) -> Any:
        """One score per weight as an (O, K, I) array, inside a compiled step; `gradient`: a tensor or ``None``."""
        look = self.traced_as_stored if criterion.is_elementwise else self.traced
        scores = criterion.score(look(), None if gradient is None else look(gradient))
        return self._view.canonical(scores) if criterion.is_elementwise else scores

    def shrink(self, factors: Any) -> None:
        """Multiply by (O, K, I) factors, inside a compiled step."""
        stored = as_tensor(self._view.stored(factors))
        self.variable.assign(self.variable * ops.cast(stored, self.variable.dtype))


def in_order(permuted: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A NumPy array with permuted axes as a contiguous one.

    A matrix that lies in memory by columns, as most kernels do to patterns, goes a strip at a time, which stays in the
    cache: a tenth of the time that NumPy takes.

    Example:
        >>> in_order(np.arange(6).reshape(2, 3).T)
        array([[0, 3],
               [1, 4],
               [2, 5]])
    """
    order = np.argsort([-stride for stride in permuted.strides], kind="stable")
    stored = np.transpose(permuted, order)
    split = permuted.ndim - int(order[0])  # how many of the stored axes came first and now come last
    is_turned = [*order] == [*np.roll(range(permuted.ndim), split)] and stored.flags.c_contiguous
    if not is_turned or split == permuted.ndim:
        return np.ascontiguousarray(permuted)
    matrix = stored.reshape(math.prod(stored.shape[:split]), -1)
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), STRIP):
        turned[:, start : start + STRIP] = matrix[start : start + STRIP].T
    return turned.reshape(permuted.shape)
