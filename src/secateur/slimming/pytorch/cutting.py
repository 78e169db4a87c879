"""Cut units out of parameters and buffers, and update the attributes of the layers that own them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import LayerError
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.layer_attributes import describe_layer
from secateur.slimming.pytorch.tensors import AxisIndices

__all__ = ["cut_tensors", "refuse_hooks", "refuse_shared_memory", "select_slices", "update_layers"]


def select_slices(tensor: torch.Tensor, removed: AxisIndices) -> torch.Tensor:
    """Copy a tensor without some indices along some axes, in the same memory format."""
    kept = tensor.detach()
    for axis, indices in removed.items():
        left = np.setdiff1d(np.arange(tensor.shape[axis]), indices)
        kept = kept.index_select(axis, torch.from_numpy(left).to(tensor.device))
    for dimensions, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        is_last = tensor.dim() == dimensions and tensor.is_contiguous(memory_format=memory_format)
        if is_last and not tensor.is_contiguous():
            kept = kept.contiguous(memory_format=memory_format)
    return kept


def cut_tensors(
    model: nn.Module, removed: Mapping[int, AxisIndices], journal: Journal
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Replace parameters and buffers with smaller ones, under all their names.

    Args:
        model: The model.
        removed: Id of a tensor → axis → the removed indices.
        journal: Records the changes.

    Returns:
        Pairs of an old and a new tensor. Both have the same memory now.
    """
    unique = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    pairs = []
    for key, axes in removed.items():
        old = unique[key]
        new = _cut(old, axes)
        if not old.is_inference():  # one at a time, so that the model is never in memory twice
            journal.release(old, new, _make_restorer(old, new, axes))
        pairs.append((old, new))
    journal.replace_tensors(model, {id(old): new for old, new in pairs})
    return pairs


def _make_restorer(old: torch.Tensor, new: torch.Tensor, removed: AxisIndices) -> Callable[[], torch.Tensor]:
    """Copy the removed part of a tensor, and return a function that merges it with the rest again."""
    shape, strides, rest = old.shape, old.stride(), old.detach()
    pieces = []
    for axis, indices in removed.items():
        kept = torch.from_numpy(np.setdiff1d(np.arange(old.shape[axis]), indices)).to(old.device)
        gone = torch.from_numpy(np.array(indices)).to(old.device)
        pieces.append((axis, kept, gone, rest.index_select(axis, gone)))
        rest = rest.index_select(axis, kept)

    def restore() -> torch.Tensor:
        tensor = new.detach()
        for axis, kept, gone, piece in reversed(pieces):
            size = [*tensor.shape]
            size[axis] += len(gone)
            whole = tensor.new_empty(size)
            tensor = whole.index_copy_(axis, kept, tensor).index_copy_(axis, gone, piece)
        return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    return restore


def _cut(old: torch.Tensor, axes: AxisIndices) -> torch.Tensor:
    new = select_slices(old, axes)
    if isinstance(old, nn.Parameter):
        make: Any = torch.Tensor._make_subclass
        new = make(type(old), new, old.requires_grad)
        if old.grad is not None:
            new.grad = select_slices(old.grad, axes)
    new.__dict__.update(old.__dict__)
    return new


def update_layers(model: nn.Module, cuts: Mapping[int, AxisIndices], journal: Journal) -> list[str]:
    """Set the attributes of known layers that follow from the new shapes of their tensors.

    Args:
        model: The model, with new tensors.
        cuts: Id of a new tensor → axis → the removed indices.
        journal: Records the changes.

    Returns:
        The names of all modules that own a new tensor.
    """
    changed = []
    for name, module in model.named_modules():
        own: dict[str, AxisIndices] = {}
        for key, value in _list_own(module):
            own[key] = own.get(key, {}) | cuts.get(id(value), {})
        if any(own.values()):
            changed.append(name)
            for attribute, size in describe_layer(name, module, own).items():
                journal.set_attribute(module, attribute, size)
    return changed


def _list_own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module, including those from which a parametrization or a mask computes its weight."""
    parametrizations: Mapping[str, nn.Module] = getattr(module, "parametrizations", {})
    registries = [(name, part._parameters) for name, part in parametrizations.items()]
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield key.removesuffix("_orig"), tensor
    for name, parameters in registries:
        yield from ((name, parameter) for parameter in parameters.values() if parameter is not None)


def refuse_shared_memory(model: nn.Module, removed: Mapping[int, AxisIndices]) -> None:
    """Refuse to cut a tensor that shares memory with other tensors of the model, because it would no longer do so.

    Raises:
        LayerError: Two tensors share memory and are not the same object.
    """
    owners: dict[int, tuple[str, torch.Tensor]] = {}
    named = [*model.named_parameters(), *model.named_buffers()]
    cut = [(name, tensor) for name, tensor in named if id(tensor) in removed and tensor.numel()]
    for name, tensor in cut:
        owners[tensor.untyped_storage().data_ptr()] = (name, tensor)
    for name, tensor in named:
        other, owner = owners.get(tensor.untyped_storage().data_ptr(), (name, tensor))
        if owner is not tensor and tensor.numel():
            raise LayerError(
                f"{other!r} loses units, and {name!r} is another tensor in the same memory, which would no longer "
                f"follow it. Tie them as one parameter, or copy one of them with clone()."
            )


def refuse_hooks(model: nn.Module, removed: Mapping[int, AxisIndices]) -> None:
    """Refuse to replace parameters with hooks, which would be lost.

    Raises:
        LayerError: A parameter that loses units has hooks on its gradient.
    """
    for name, weight in model.named_parameters():
        hooks = getattr(weight, "_backward_hooks", None) or getattr(weight, "_post_accumulate_grad_hooks", None)
        if id(weight) in removed and hooks:
            raise LayerError(
                f"{name!r} loses units, and has hooks on its gradient, which a new parameter would not have. Remove "
                f"them, and add them again after slimming."
            )
