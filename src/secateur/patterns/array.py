"""Patterns on plain arrays, of NumPy or another library."""

from __future__ import annotations

from typing import Any, ClassVar

from secateur._array import Array
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.patterns.base import BasePattern
from secateur.patterns.view import WeightView

__all__ = ["ArrayBasePattern"]


class ArrayBasePattern(BasePattern):
    """The binding of patterns to arrays of any library: in place of a module stands the `WeightView` of its weight."""

    framework: ClassVar[str | None] = "array"

    def weight_view(self, module: Any) -> WeightView:
        """See `BasePattern.weight_view`."""
        if not isinstance(module, WeightView):
            raise UnsupportedModelError(
                f"Patterns without a framework need a WeightView for each layer, found {type(module).__name__}."
            )
        return module

    def weight(self, module: Any) -> Array:  # noqa: ARG002
        """There is none.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a WeightView says where a weight's channels lie, and holds no weight")
