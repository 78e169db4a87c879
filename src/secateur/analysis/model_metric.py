"""Measure a model by a function of the user."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from secateur._wording import format_value
from secateur.errors import ScoreError
from secateur.oneshot.interrupts import allow_interrupts

__all__ = ["ModelMetric"]


class ModelMetric:
    """A function of a model, checked on the dense one.

    Args:
        function: The function.
        model: The dense model.
        name: The name of the function.
        higher_is_better: Whether higher values are better.

    Attributes:
        dense_value: The value of the dense model.

    Raises:
        ScoreError: The function returns something else than a finite number, or two values for the dense model.
    """

    def __init__(self, function: Callable[[Any], float], model: Any, name: str, *, higher_is_better: bool) -> None:
        self._function = function
        self._model = model
        self._name = name
        self._sign = -1.0 if higher_is_better else 1.0
        self.dense_value, second = (self.measure("the dense model") for _ in range(2))
        if second != self.dense_value:
            raise ScoreError(
                f"{name} must return the same value for the same weights, found {self.dense_value!r} and {second!r} "
                f"for the dense model. Use the same data each time, and set the seeds of random numbers."
            )

    def measure(self, subject: str) -> float:
        """Return the value of the model.

        Args:
            subject: What is measured, for errors.

        Raises:
            ScoreError: The value is not a finite number.
        """
        with allow_interrupts():
            value = self._function(self._model)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ScoreError(
                f"{self._name} must return a number, found {format_value(value)} for {subject}. Return a float."
            ) from error
        if not math.isfinite(number):
            raise ScoreError(
                f"{self._name} must return a finite number, found {number} for {subject}. Return a large finite number "
                f"instead, or leave out this sparsity."
            )
        return number

    def compute_loss(self, value: float) -> float:
        """Return how much worse a value is than that of the dense model."""
        return self._sign * (value - self.dense_value)
