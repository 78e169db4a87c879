"""Run a model on its example inputs without side effects, and compare outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.example_inputs import ExampleInputs, fix_seed, parse_example_inputs
from secateur._calls.pytorch.output_snapshot import OutputSnapshot, find_tensors, measure_difference, take_snapshot
from secateur.errors import CalibrationError

__all__ = ["ExampleRun", "evaluate_model", "prepare_inputs", "restore_buffers"]

TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference of outputs that rounding explains in most models, by the type of the parameters."""

MARGIN, MAX_TOLERANCE = 8.0, 1e-3
"""Models that amplify rounding errors, such as language models, get this multiple of the effect, up to the maximum."""


class ExampleRun:
    """Runs a model in evaluation mode on the same inputs with the same random numbers.

    Modes, buffers, random number generators and the inputs are the same afterwards.

    Args:
        model: The model.
        example_inputs: See `secateur.slim`.

    Attributes:
        tolerance: Largest difference that counts as equal.

    Raises:
        CalibrationError: There are no example inputs, or the model fails with them, or returns no tensors.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        if example_inputs is None:
            raise CalibrationError(
                "example_inputs must be given: slimming compares the outputs of the model before and after. Pass "
                "typical inputs."
            )
        self._model = model
        self._inputs = prepare_inputs(model, example_inputs)
        weight = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))
        self._device = weight.device
        self._expected = self.run()
        if not any(isinstance(value, torch.Tensor) for value in self._expected.values()):
            raise CalibrationError("The model must return tensors for the example inputs, found none in its outputs.")
        usual = TOLERANCES.get(weight.dtype, 1e-5)
        self.tolerance = max(usual, min(MAX_TOLERANCE, MARGIN * self.measure_rounding(torch.finfo(weight.dtype).eps)))

    def run(self) -> OutputSnapshot:
        """Return the outputs.

        Raises:
            CalibrationError: The model fails.
        """
        with torch.no_grad(), fix_seed(self._device), evaluate_model(self._model), restore_buffers(self._model):
            return take_snapshot(self._inputs.copy().call(self._model))

    def find_effective(self) -> set[int]:
        """Return the ids of the parameters that gradients of the outputs reach.

        Raises:
            CalibrationError: The model fails.
        """
        weights = [weight for weight in self._model.parameters() if weight.is_floating_point()]
        flags = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with torch.enable_grad(), fix_seed(self._device), evaluate_model(self._model), restore_buffers(self._model):
                outputs = find_tensors(self._inputs.copy().call(self._model))
                return set(_find_leaf_variables([tensor.grad_fn for tensor in outputs]))
        finally:
            for weight, flag in zip(weights, flags, strict=True):
                weight.requires_grad_(flag)

    def measure_change(self) -> float:
        """Return the largest difference from the initial outputs, relative to the largest output or to 1.

        Raises:
            CalibrationError: The model fails.
        """
        return measure_difference(self._expected, self.run(), min_size=1.0)

    def measure_rounding(self, error: float) -> float:
        """Return how much outputs change if each layer with weights has a relative error, such as a rounding error."""
        generator = torch.Generator(self._device).manual_seed(0)

        def disturb(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return output
            signs = torch.rand(output.shape, generator=generator, device=output.device, dtype=output.dtype)
            return output * (1 + error * (2 * signs - 1))

        with ExitStack() as hooks:
            for module in self._model.modules():
                if next(module.parameters(recurse=False), None) is not None:
                    hooks.callback(module.register_forward_hook(disturb).remove)
            return self.measure_change()

    def is_close(self, tolerance: float) -> bool:
        """Whether the model accepts the inputs, and its outputs are close to the initial ones."""
        try:
            return self.measure_change() <= tolerance
        except CalibrationError:
            return False


def prepare_inputs(model: nn.Module, example_inputs: Any) -> ExampleInputs:
    """Copy the inputs of a model for calls whose outputs have no caches, because their shapes change with the heads.

    Raises:
        CalibrationError: They are neither a tensor, nor a tuple, nor a mapping.
    """
    inputs = parse_example_inputs(example_inputs).copy()
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs.kwargs.setdefault("use_cache", False)
    return inputs


def _find_leaf_variables(pending: list[Any]) -> Iterator[int]:
    """Yield the ids of the parameters at the leaves of an autograd graph."""
    visited = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in visited:
            visited.add(node)
            if hasattr(node, "variable"):
                yield id(node.variable)
            pending += [following for following, _ in node.next_functions]


@contextmanager
def evaluate_model(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of each module."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def restore_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that a call of the model changes or replaces."""
    registries = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    copies = {
        id(value): (value, value.clone()) for _, before in registries for value in before.values() if value is not None
    }
    try:
        yield
    finally:
        for buffers, before in registries:
            buffers.clear()
            buffers.update(before)
        for value, copied in copies.values():
            if not _is_same(value, copied):
                value.copy_(copied)


def _is_same(value: torch.Tensor, copied: torch.Tensor) -> bool:
    return value.shape == copied.shape and torch.equal(value.nan_to_num(), copied.nan_to_num())
