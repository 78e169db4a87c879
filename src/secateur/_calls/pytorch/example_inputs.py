"""Parse example inputs, and call a model with copies of them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError, SecateurError

__all__ = ["ExampleInputs", "fix_seed", "parse_example_inputs"]

SEED = 0


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """The arguments of one call of a model.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> ExampleInputs:
        """Copy all arguments, because a model may modify its inputs."""
        return ExampleInputs(_copy(self.args), _copy(self.kwargs))

    def convert(self, dtype: torch.dtype) -> ExampleInputs:
        """Copy all arguments, with floating-point tensors in another type."""
        return ExampleInputs(_copy(self.args, dtype), _copy(self.kwargs, dtype))

    def call(self, model: nn.Module) -> Any:
        """Call a model with these arguments.

        Raises:
            CalibrationError: The model raises an exception.
        """
        try:
            return model(*self.args, **self.kwargs)
        except SecateurError:
            raise
        except Exception as error:
            hint = self._suggest_form() if isinstance(error, TypeError) else ""
            raise CalibrationError(
                f"The model fails with the example inputs: {type(error).__name__}: {error}{hint}"
            ) from error

    def _suggest_form(self) -> str:
        """Suggest another form of the inputs if the model may expect fewer arguments."""
        if self.kwargs:
            return ". If the model takes a mapping as its only argument, pass it in a tuple: (inputs,)."
        if len(self.args) > 1:
            return ". Each item of the tuple is one argument: leave out labels, as in (inputs,)."
        return ""


def parse_example_inputs(value: Any) -> ExampleInputs:
    """Convert an argument `example_inputs`, as of `secateur.runtime.compile`, to the arguments of a call.

    Raises:
        CalibrationError: The value is not a tensor, tuple or mapping, or it is empty.
    """
    if isinstance(value, torch.Tensor):
        return ExampleInputs((value,))
    if isinstance(value, (tuple, list)) and value:
        return ExampleInputs(tuple(value))
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        return ExampleInputs(kwargs=dict(value))
    raise CalibrationError(
        f"example_inputs must be a tensor, a tuple of positional arguments, or a mapping of keyword arguments, found "
        f"{'an empty ' if isinstance(value, (tuple, list, Mapping)) and not value else ''}{type(value).__name__}."
    )


@contextmanager
def fix_seed(device: torch.device) -> Iterator[None]:
    """Seed the random number generators of torch and Python inside a ``with`` block, then restore their state."""
    state = random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        _seed_torch(device)
        random.seed(SEED)
        try:
            yield
        finally:
            random.setstate(state)


def _seed_torch(device: torch.device) -> None:
    """Seed torch; on a CPU, without the millisecond that `torch.manual_seed` spends on other devices."""
    if device.type == "cpu" and not torch.cuda.is_initialized():
        torch.default_generator.manual_seed(SEED)
    else:
        torch.manual_seed(SEED)


def _copy(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Copy tensors in tuples, lists and dicts, and other objects. `dtype` is a new type for floating-point tensors."""
    if isinstance(value, torch.Tensor):
        copied = value.detach().clone().requires_grad_(value.requires_grad)
        return copied if dtype is None or not value.is_floating_point() else copied.to(dtype)
    if type(value) in (tuple, list):
        return type(value)(_copy(item, dtype) for item in value)
    if type(value) is dict:
        return {key: _copy(item, dtype) for key, item in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - share objects that cannot be copied
        return value
