"""The call that a model is compiled for, repeated as often as it takes without a change to the caller's values."""

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

__all__ = ["Example", "fixed_seed", "read_example"]

SEED = 0


@dataclass(frozen=True, slots=True)
class Example:
    """The arguments of a call.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Example:
        """The same call with arguments of its own, for a model that writes to them."""
        return Example(_copied(self.args), _copied(self.kwargs))

    def run(self, model: nn.Module) -> Any:
        """Call the model.

        Raises:
            CalibrationError: The model raises an error.
        """
        try:
            return model(*self.args, **self.kwargs)
        except SecateurError:
            raise
        except Exception as error:
            raise CalibrationError(f"The model refuses the example inputs: {type(error).__name__}: {error}") from error


def read_example(given: Any) -> Example:
    """The example inputs of `secateur.runtime.compile` as a call.

    Raises:
        CalibrationError: They are of no kind that can be called.
    """
    if isinstance(given, torch.Tensor):
        return Example((given,))
    if isinstance(given, (tuple, list)) and given:
        return Example(tuple(given))
    if isinstance(given, Mapping) and given and all(isinstance(key, str) for key in given):
        return Example(kwargs=dict(given))
    raise CalibrationError(
        f"example_inputs must be a tensor, a tuple of positional arguments or a mapping of keyword arguments, found "
        f"{'an empty ' if isinstance(given, (tuple, list, Mapping)) and not given else ''}{type(given).__name__}."
    )


@contextmanager
def fixed_seed(device: torch.device) -> Iterator[None]:
    """Fix the random numbers of torch and Python within the block, and leave them as they were."""
    state = random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(SEED)
        random.seed(SEED)
        try:
            yield
        finally:
            random.setstate(state)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(_copied(one) for one in value)
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - any class may refuse to be copied, and is then shared
        return value
