"""A pruned kernel of a Keras model that trains."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from secateur._array import Array
from secateur.criteria import BaseCriterion
from secateur.frameworks.keras import apply_mask, make_contiguous, read_array, wrap_for_assign
from secateur.masking.keras import KernelWeight
from secateur.patterns import BasePattern
from secateur.training.keras.graph_array import as_array, as_tensor
from secateur.training.keras.home import Home

__all__ = ["Kernel"]


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
        return self._mask if self.mask_variable is None else read_array(self.mask_variable)

    @mask.setter
    def mask(self, mask: Array) -> None:
        if self.mask_variable is None:
            self._mask = mask
        else:
            self.mask_variable.assign(wrap_for_assign(make_contiguous(mask)))

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes, in the kernel and in the average that its optimizer keeps of it."""
        mask = self._mask if self.mask_variable is None else self.mask_variable
        if mask is None:
            return
        apply_mask(self.variable, mask)
        average = None if self.home is None else self.home.average()
        if average is not None:
            apply_mask(average, mask)

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
