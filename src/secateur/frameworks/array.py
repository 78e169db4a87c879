"""Support plain arrays, of NumPy or another library."""

from __future__ import annotations

from typing import Any

from secateur._array import Array
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.base import Framework
from secateur.frameworks.view import WeightView

__all__ = ["FRAMEWORK", "ArrayFramework"]


class ArrayFramework(Framework):
    """Interface to plain arrays. In place of each layer, pass the `WeightView` of its weight."""

    name = "array"

    def get_view(self, layer: Any) -> WeightView:
        """See `Framework.get_view`."""
        if not isinstance(layer, WeightView):
            raise UnsupportedModelError(
                f"Patterns without a framework need a WeightView for each layer, found {type(layer).__name__}."
            )
        return layer

    def read_weight(self, layer: Any) -> Array:  # noqa: ARG002
        """Raise `LayerError`: a `WeightView` has no values."""
        raise LayerError("a WeightView describes the axes of a weight and has no values")


FRAMEWORK = ArrayFramework()
