"""What the optimizer inside does with a kernel."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from secateur.frameworks.keras import get_tensor

__all__ = ["Home", "homes_of"]


class Home:
    """The optimizer that changes a kernel, and where in it the kernel stands.

    Args:
        optimizer: A built optimizer of Keras that is no container of others.
        kernel: The kernel.

    Attributes:
        optimizer: The optimizer.
        accumulated: Calls of `apply` that make one step.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, kernel: keras.Variable) -> None:
        self.optimizer = optimizer
        self.accumulated = optimizer.gradient_accumulation_steps or 1
        self._kernel = kernel

    def learning_rate(self) -> Any:
        """The learning rate of the coming step."""
        return get_tensor(self.optimizer.learning_rate)

    def makes_step(self) -> Any:
        """Whether the coming call of `apply` changes the kernel, as ``True`` or a tensor."""
        if self.accumulated == 1:
            return True
        return ops.equal((self.optimizer._iterations + 1) % self.accumulated, 0)

    def gradient(self, given: Any) -> Any:
        """The gradient that the coming step applies, freed of a static loss scale.

        Args:
            given: The gradient that `apply` is called with.
        """
        scale = self.optimizer.loss_scale_factor
        gradient = ops.convert_to_tensor(given) if scale is None else given / scale
        if self.accumulated == 1:
            return gradient
        return (gradient + self.optimizer._accumulated_gradients[self._place]) / self.accumulated

    def average(self) -> keras.Variable | None:
        """The moving average that the optimizer keeps of the kernel; ``None``: it keeps none."""
        return self.optimizer._model_variables_moving_average[self._place] if self.optimizer.use_ema else None

    @property
    def _place(self) -> int:
        place: int = self.optimizer._get_variable_index(self._kernel)
        return place


def homes_of(optimizer: keras.optimizers.Optimizer, kernels: dict[str, keras.Variable]) -> dict[str, Home]:
    """Name → where the kernel of that name is held by a built optimizer, or by one of those within it."""
    return {name: Home(_holder(optimizer, kernel), kernel) for name, kernel in kernels.items()}


def _holder(optimizer: keras.optimizers.Optimizer, kernel: keras.Variable) -> keras.optimizers.Optimizer:
    for inner in getattr(optimizer, "optimizers", ()):
        if inner.built and inner._var_key(kernel) in inner._trainable_variables_indices:
            return inner
    return optimizer
