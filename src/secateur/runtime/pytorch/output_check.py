"""Compare the outputs of a model with its layers replaced with those of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur._calls.pytorch.example_inputs import ExampleInputs, fix_seed
from secateur._calls.pytorch.output_snapshot import OutputSnapshot, measure_difference, take_snapshot
from secateur.errors import CalibrationError, SecateurError
from secateur.runtime.pytorch.replacement import replace_modules_temporarily

__all__ = ["OutputCheck", "Replacement", "summarize_error"]

MAX_CALLS = 64
"""Limit for the calls of the model to find the layers that change its outputs."""

MAX_REASON_CHARACTERS = 200

SAFETY_FACTOR = 4.0
"""Replacements may change the outputs by this multiple of the effect of small errors or of random differences."""

ERROR_FACTOR = 2.0
"""Size of the small error to add to a layer, relative to the error measured with random inputs."""

COMPARISON_ERRORS = (NotImplementedError, RuntimeError, TypeError, ValueError)
"""Exceptions for outputs that cannot be copied or compared."""


class Replacement(NamedTuple):
    """A possible replacement for a layer.

    Attributes:
        layer: The sparse layer.
        error: Largest difference from the outputs of the dense layer, relative to the largest dense output.
        tolerance: Largest allowed difference, relative to the largest dense output.
    """

    layer: nn.Module
    error: float
    tolerance: float


class OutputCheck:
    """Compares the outputs of a model for the example inputs, dense and with layers replaced.

    The dense model is called twice with the same random numbers of torch and Python, to measure how much its outputs
    differ between calls.

    Args:
        model: The dense model. All methods leave it unchanged.
        example: The example inputs.
        device: Device of the model.

    Attributes:
        unsupported_reason: Why the outputs cannot be compared, or an empty string if they can.

    Raises:
        CalibrationError: The model fails with the example inputs.
    """

    def __init__(self, model: nn.Module, example: ExampleInputs, device: torch.device) -> None:
        self.unsupported_reason = ""
        self._model, self._example, self._device = model, example, device
        self._calls, self._noise, self._expected = 0, 0.0, OutputSnapshot()
        outputs = self._call()
        try:
            self._expected = take_snapshot(outputs)
        except COMPARISON_ERRORS as error:
            self.unsupported_reason = f"the model's outputs cannot be compared: {summarize_error(error)}"
            return
        tensors = [value for value in self._expected.values() if isinstance(value, torch.Tensor)]
        if tensors and not any(map(_has_finite_value, tensors)):
            self.unsupported_reason = "the outputs of the dense model are all nan or infinite, or empty"
            return
        self._noise = measure_difference(self._expected, take_snapshot(self._call()))

    def get_unsupported_reason(self, tolerance: float) -> str:
        """Return why the outputs cannot be compared with this tolerance, or an empty string if they can."""
        if self.unsupported_reason:
            return self.unsupported_reason
        if not any(isinstance(value, torch.Tensor) for value in self._expected.values()):
            return "the model returns no tensor to compare"
        if self._noise > max(tolerance, 0.0):
            return f"the outputs of the dense model differ by {self._noise:.1e} between calls"
        return ""

    def measure_error(self, outputs: Any) -> float:
        """Return how much outputs differ from the dense ones, see `measure_difference`. Their type may differ."""
        actual = take_snapshot(outputs)
        return measure_difference(
            self._expected, {path: _convert_like(value, self._expected.get(path)) for path, value in actual.items()}
        )

    def measure_replacement_error(self, replacements: Mapping[str, nn.Module]) -> float:
        """Return how much the outputs differ from the dense ones with layers replaced."""
        if not replacements:
            return 0.0
        with replace_modules_temporarily(self._model, replacements):
            return self.measure_error(self._call())

    def find_wrong_layers(self, replacements: Mapping[str, Replacement]) -> dict[str, str]:
        """Find the layers that must stay dense to keep the outputs correct, each with the reason."""
        self._calls = 0
        return self._bisect(replacements)

    def _bisect(self, replacements: Mapping[str, Replacement]) -> dict[str, str]:
        if not replacements or not (problem := self._find_problem(replacements)):
            return {}
        names = list(replacements)
        if len(names) == 1 or self._calls > MAX_CALLS:
            return dict.fromkeys(names, problem)
        wrong: dict[str, str] = {}
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            wrong |= self._bisect({name: replacements[name] for name in half})
        rest = {name: replacement for name, replacement in replacements.items() if name not in wrong}
        if rest and (problem := self._find_problem(rest)):
            wrong |= dict.fromkeys(rest, problem)
        return wrong

    def _find_problem(self, replacements: Mapping[str, Replacement]) -> str:
        """Return what is wrong with the outputs, or an empty string if they are correct."""
        tolerance = max(replacement.tolerance for replacement in replacements.values())
        if reason := self.get_unsupported_reason(tolerance):
            return reason
        layers = {name: replacement.layer for name, replacement in replacements.items()}
        try:
            with replace_modules_temporarily(self._model, layers):
                difference = measure_difference(self._expected, take_snapshot(self._call()))
        except SecateurError as error:
            return f"the model fails with it: {summarize_error(error.__cause__ or error)}"
        except COMPARISON_ERRORS as error:
            return f"the model's outputs cannot be compared: {summarize_error(error)}"
        if difference <= max(tolerance, SAFETY_FACTOR * self._noise):
            return ""
        if difference < float("inf") and difference <= SAFETY_FACTOR * self._measure_sensitivity(replacements):
            return ""
        return f"the model's outputs would differ by {difference:.1e}"

    def _measure_sensitivity(self, replacements: Mapping[str, Replacement]) -> float:
        """Measure how much the outputs of the dense model change if each of these layers has a small error."""
        generator = torch.Generator(self._device).manual_seed(1)

        def make_hook(size: float) -> Callable[..., torch.Tensor | None]:
            def add_error(_: nn.Module, __: Any, outputs: Any) -> torch.Tensor | None:
                if not isinstance(outputs, torch.Tensor) or not outputs.numel():
                    return None
                signs = torch.empty(outputs.shape, device=self._device).bernoulli_(generator=generator) * 2 - 1
                return outputs + (signs * (size * outputs.abs().max())).to(outputs.dtype)

            return add_error

        with ExitStack() as hooks:
            for name, replacement in replacements.items():
                size = max(ERROR_FACTOR * replacement.error, torch.finfo(torch.float32).eps)
                layer = self._model.get_submodule(name)
                hooks.callback(layer.register_forward_hook(make_hook(size)).remove)
            try:
                return measure_difference(self._expected, take_snapshot(self._call()))
            except (CalibrationError, *COMPARISON_ERRORS):
                return 0.0

    def _call(self) -> Any:
        self._calls += 1
        with fix_seed(self._device):
            return self._example.copy().call(self._model)


def _has_finite_value(tensor: torch.Tensor) -> bool:
    is_small_float = tensor.is_floating_point() and tensor.element_size() == 1  # torch has no isfinite for some of them
    return bool((tensor.float() if is_small_float else tensor).isfinite().any())


def _convert_like(value: Any, expected: Any) -> Any:
    """Convert a floating-point tensor to the type of another one."""
    if all(isinstance(item, torch.Tensor) and item.is_floating_point() for item in (value, expected)):
        return value.to(expected.dtype)
    return value


def summarize_error(error: BaseException) -> str:
    """Return the type of an exception and the beginning of its message."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= MAX_REASON_CHARACTERS else f"{text[:MAX_REASON_CHARACTERS]}…"
