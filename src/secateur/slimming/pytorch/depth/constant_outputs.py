"""Observe which modules return zeros, or a bias, regardless of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._resizing.pytorch import BranchLayout, list_arguments

__all__ = ["ObservedOutput", "disturb_inputs", "observe_outputs"]

SEED = 0

Observer: TypeAlias = Callable[[str, nn.Module, Mapping[str, Any], Any], None]


@dataclass(frozen=True, slots=True)
class ObservedOutput:
    """The output of a module.

    Attributes:
        layout: The layout of the output.
        shape: Its shape.
        is_constant: Whether it is zero, or a bias.
    """

    layout: BranchLayout
    shape: tuple[int, ...]
    is_constant: bool


def observe_outputs(model: nn.Module, names: Iterable[str], example: ExampleRun) -> dict[str, ObservedOutput]:
    """Run the model with noise in the inputs of some modules, and describe their outputs.

    Args:
        model: The model.
        names: Names of modules.
        example: Runs the model.

    Returns:
        Each module whose output has the form of an input except along one axis → the output. Modules that are called
        several times with different results are left out.

    Raises:
        CalibrationError: The model fails.
    """
    observations: dict[str, ObservedOutput | None] = {}

    def observe(name: str, module: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
        observed = _describe(module, inputs, output)
        observations[name] = observed if observations.setdefault(name, observed) == observed else None

    with disturb_inputs(model, names, observe):
        example.run()
    return {name: observed for name, observed in observations.items() if observed is not None}


@contextmanager
def disturb_inputs(model: nn.Module, names: Iterable[str], observe: Observer) -> Iterator[None]:
    """While the model runs, add noise to the inputs of some modules, and observe their calls.

    Args:
        model: The model.
        names: Names of modules.
        observe: Called with the name of a module, the module, its arguments by name, and its output.
    """
    generator = torch.Generator().manual_seed(SEED)

    def disturb(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        values = {id(value): value for value in (*args, *kwargs.values())}
        noisy = {key: _add_noise(value, generator) for key, value in values.items()}
        return tuple(noisy[id(value)] for value in args), {key: noisy[id(value)] for key, value in kwargs.items()}

    def report(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        observe(name, module, dict(zip(list_arguments(module), args, strict=False)) | kwargs, output)

    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(disturb, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(report, name), with_kwargs=True).remove)
        yield


def _add_noise(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    size = value.float().square().mean().sqrt()
    return value + noise * size.to(value.dtype) if 0 < float(size) < float("inf") else value + noise


def _describe(module: nn.Module, inputs: Mapping[str, Any], output: Any) -> ObservedOutput | None:
    """Describe the output of a call; ``None``: its form does not follow from an input."""
    outputs = len(output) if isinstance(output, tuple) else None
    value = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.dim():
        return None
    is_zero = not value.any()  # false if it is nan
    bias = None if is_zero else next(_find_biases(module, value), None)
    for name, source in inputs.items():
        if isinstance(source, torch.Tensor) and (source.dtype, source.dim()) == (value.dtype, value.dim()):
            axes = [axis for axis in range(-value.dim(), 0) if source.shape[axis] != value.shape[axis]]
            if len(axes) <= 1:
                axis = axes[0] if axes else None
                size = None if axis is None else value.shape[axis]
                layout = BranchLayout(input=name, outputs=outputs, axis=axis, size=size, bias=bias)
                return ObservedOutput(layout, tuple(value.shape), is_constant=is_zero or bias is not None)
    return None


def _find_biases(module: nn.Module, value: torch.Tensor) -> Iterator[str]:
    """Yield the parameters to which an output is equal along the last axis."""
    rows = value.reshape(-1, value.shape[-1])
    if torch.equal(rows, rows[:1].expand_as(rows)):
        for name, parameter in module.named_parameters():
            if parameter.shape == rows.shape[1:] and torch.equal(parameter.detach(), rows[0]):
                yield name
