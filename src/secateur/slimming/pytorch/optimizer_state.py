"""Give optimizers the new parameters, and the part of their state that belongs to the kept weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateur.errors import StateError, UnsupportedModelError
from secateur.slimming.pytorch.cutting import select_slices
from secateur.slimming.pytorch.tensors import AxisIndices

__all__ = ["check_state", "forget_parameters", "list_optimizers", "replace_parameters"]

Removed = Mapping[int, AxisIndices]


def list_optimizers(model: nn.Module, optimizer: Any) -> tuple[Optimizer, ...]:
    """Return the optimizers that were passed, and check that they belong to the model.

    Raises:
        StateError: An optimizer has no parameter of the model.
        UnsupportedModelError: An object is not a torch optimizer.
    """
    if optimizer is None:
        return ()
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    for item in optimizers:  # wrappers share groups with the optimizer inside, and each may have state
        inner = (value for value in getattr(item, "__dict__", {}).values() if isinstance(value, Optimizer))
        optimizers += tuple(value for value in inner if value not in optimizers)
    own = {id(weight) for weight in model.parameters()}
    for item in optimizers:
        if not isinstance(item, Optimizer):
            raise UnsupportedModelError(f"optimizer must be a torch.optim.Optimizer, found {type(item).__name__}.")
        if not any(id(weight) in own for group in item.param_groups for weight in group["params"]):
            raise StateError(
                f"The {type(item).__name__} optimizer belongs to another model: it has no parameter of this one."
            )
    return optimizers


def check_state(optimizers: Iterable[Optimizer], removed: Removed) -> None:
    """Check that the state of the parameters that lose units can be cut.

    Raises:
        StateError: A tensor in the state has a shape that does not follow from that of its parameter.
    """
    for optimizer in optimizers:
        for weight, state in optimizer.state.items():
            for key, value in state.items() if id(weight) in removed and isinstance(state, Mapping) else ():
                if isinstance(value, torch.Tensor):
                    _align_axes(type(optimizer).__name__, key, value, tuple(weight.shape))


def replace_parameters(
    optimizers: Iterable[Optimizer], pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], removed: Removed
) -> None:
    """Replace parameters in optimizers, in their order, and cut their state.

    Args:
        optimizers: The optimizers, after `check_state`.
        pairs: Old and new parameters.
        removed: Id of an old parameter → axis → the removed indices.
    """
    new = {id(old): (old, after) for old, after in pairs}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [new[id(weight)][1] if id(weight) in new else weight for weight in group["params"]]
        for old, after in new.values():
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                name, axes = type(optimizer).__name__, removed[id(old)]
                full = tuple(size + len(axes.get(axis, ())) for axis, size in enumerate(after.shape))
                optimizer.state[after] = {key: _cut_value(name, key, value, full, axes) for key, value in state.items()}


def forget_parameters(optimizers: Iterable[Optimizer], gone: Collection[int]) -> None:
    """Remove parameters, by their ids, from optimizers, with their state. Parameter groups stay, even if empty."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [weight for weight in group["params"] if id(weight) not in gone]
        for weight in [weight for weight in optimizer.state if id(weight) in gone]:
            del optimizer.state[weight]


def _cut_value(optimizer: str, key: str, value: Any, full: tuple[int, ...], removed: AxisIndices) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    axes = _align_axes(optimizer, key, value, full)
    if axes is None:
        return value
    cut = select_slices(value, {axes[axis]: indices for axis, indices in removed.items() if axis in axes})
    # A factored second moment has means over the other axes. The removed part had no gradients, so the means grow
    # without it.
    for axis, indices in removed.items():
        if axis not in axes:
            cut *= full[axis] / (full[axis] - len(indices))
    return cut


def _align_axes(optimizer: str, key: str, value: torch.Tensor, full: tuple[int, ...]) -> dict[int, int] | None:
    """Map axes of a parameter to those of a tensor in its state; ``None``: the tensor does not depend on the shape.

    Factored second moments lack an axis, or have length 1 along it.

    Raises:
        StateError: The shape does not follow from that of the parameter.
    """
    shape = tuple(value.shape)
    if shape == full:
        return {axis: axis for axis in range(len(full))}
    if value.numel() == 1:
        return None
    if len(shape) == len(full) and all(size in (1, whole) for size, whole in zip(shape, full, strict=True)):
        return {axis: axis for axis, size in enumerate(shape) if size == full[axis] and size > 1}
    last, before = len(full) - 1, len(full) - 2
    lacking = {"row": last, "col": before}
    for part, missing in lacking.items():
        left = [axis for axis in range(len(full)) if axis != missing]
        if part in key and shape == tuple(full[axis] for axis in left):
            return {axis: position for position, axis in enumerate(left)}
    raise StateError(
        f"The state {key!r} of the {optimizer} optimizer has shape {shape}, which does not follow from the shape "
        f"{full} of its parameter. Slim the model before you create the optimizer, or use another one."
    )
