"""The interface through which patterns access a framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from secateur._array import Array, count_true
from secateur.errors import ConfigError
from secateur.frameworks.view import WeightView

__all__ = ["Framework", "NoFramework"]


class Framework(ABC):
    """Access the layers and weights of one framework.

    There is one instance per framework. Get it with `get_framework`.

    Attributes:
        name: ``"pytorch"``, ``"keras"`` or ``"array"``.
    """

    name: ClassVar[str]

    can_lock_later: ClassVar[bool] = False
    """Whether a saved state can lock zeros in layers that had none when a run was prepared."""

    @abstractmethod
    def get_view(self, layer: Any) -> WeightView:
        """Return the canonical view of a layer's weight.

        Raises:
            LayerError: The layer has no weight that can be pruned; the message says why.
            UnsupportedModelError: The object is not a layer of this framework.
        """

    @abstractmethod
    def read_weight(self, layer: Any) -> Array:
        """Return a layer's weight as an array in its stored shape, without a copy where possible.

        Raises:
            LayerError: The layer has no weight that can be pruned; the message says why.
        """

    def count_nonzero(self, layer: Any) -> int:
        """Count the weights of a layer that are not zero.

        Raises:
            LayerError: The layer has no weight that can be pruned; the message says why.
        """
        return count_true(self.read_weight(layer))

    def get_weight_id(self, layer: Any) -> int:
        """Return a number that is the same for layers that share a weight, and differs otherwise."""
        return id(layer)

    def get_parameter_name(self, name: str, layer: Any) -> str:  # noqa: ARG002
        """Return the name in the model of a layer's weight, given the name of the layer."""
        return name

    def to_array(self, tensor: Any) -> Array:
        """Convert a tensor to the type of array for which selection is fastest."""
        return tensor

    def from_array(self, array: Array, like: Any) -> Any:  # noqa: ARG002
        """Convert an array to the type and the device of the tensor `like`."""
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        from secateur.frameworks import get_framework

        return get_framework, (self.name,)


class NoFramework(Framework):
    """Placeholder for patterns that were not created by `get_pattern`. It cannot read layers."""

    name = "none"

    def get_view(self, layer: Any) -> WeightView:
        """Raise `ConfigError`."""
        raise self._make_error(layer)

    def read_weight(self, layer: Any) -> Array:
        """Raise `ConfigError`."""
        raise self._make_error(layer)

    def _make_error(self, layer: Any) -> ConfigError:
        return ConfigError(
            f"This pattern has no framework, so it cannot read {type(layer).__name__} layers. Create it with "
            f"get_pattern, or derive its class from PytorchBasePattern or KerasBasePattern."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return NoFramework, ()
