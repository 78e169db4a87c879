"""What the pattern arithmetic needs of an array beyond the Python array API standard."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

__all__ = ["Array", "namespace", "to_numpy"]

Array = Any
"""A NumPy array, a torch tensor or a JAX array."""


def namespace(array: Array) -> Any:
    """The array API namespace that `array` belongs to."""
    return array_api_compat.array_namespace(array)


def to_numpy(array: Array) -> npt.NDArray[Any]:
    """`array` in host memory as NumPy, without a copy where it is there already."""
    if isinstance(array, np.ndarray):
        return array
    return np.asarray(array.cpu() if array_api_compat.is_torch_array(array) else array)
