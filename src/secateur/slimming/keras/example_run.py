"""Run a Keras model on its example inputs, and compare outputs."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from secateur.errors import CalibrationError
from secateur.frameworks.keras import read_array

__all__ = ["KerasExampleRun"]

TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}
"""Largest difference of outputs that rounding explains, by the type in which layers compute; 1e-5 for others."""


class KerasExampleRun:
    """Runs models in inference mode on the same inputs.

    Args:
        model: The model whose outputs are expected.
        example_inputs: See `secateur.slim`.

    Attributes:
        inputs: The inputs.
        tolerance: Largest difference that counts as equal.

    Raises:
        CalibrationError: There are no example inputs, or the model fails with them.
    """

    def __init__(self, model: keras.Model, example_inputs: Any) -> None:
        if example_inputs is None:
            raise CalibrationError(
                "example_inputs must be given: slimming compares the outputs of the model before and after. Pass "
                "typical inputs."
            )
        self.inputs = example_inputs
        types = {layer.compute_dtype for layer in model._flatten_layers()}
        self.tolerance = max(TOLERANCES.get(kind, 1e-5) for kind in types)
        self._expected = self._run(model)

    def _run(self, model: keras.Model) -> list[npt.NDArray[np.float64]]:
        try:
            outputs = model(self.inputs, training=False)
        except Exception as error:
            raise CalibrationError(
                f"The model must accept the example inputs, but it raised {type(error).__name__}: {error}. Pass one "
                f"batch: a tensor, or a list or a mapping of tensors."
            ) from error
        return [read_array(tensor).astype(np.float64) for tensor in keras.tree.flatten(outputs)]

    def measure_change(self, model: keras.Model) -> float:
        """Return the largest difference from the expected outputs, relative to the largest output or to 1.

        Raises:
            CalibrationError: The model fails.
        """
        pairs = zip(self._expected, self._run(model), strict=True)
        return max(_compare(expected, actual) for expected, actual in pairs)


def _compare(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> float:
    if expected.shape != actual.shape or not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return math.inf
    is_finite = np.isfinite(expected)
    if not np.array_equal(expected[~is_finite], actual[~is_finite], equal_nan=True):
        return math.inf
    difference = np.abs(expected - actual)[is_finite].max(initial=0)
    return float(difference / max(np.abs(expected[is_finite]).max(initial=0), 1))
