"""Temporarily set all weights that read the units of groups to zero, without copying them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.graph import Graph, Role
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.tensors import AxisIndices, locate_removed
from secateur.slimming.removal import Removal

__all__ = ["zero_consumers"]


@contextmanager
def zero_consumers(
    model: nn.Module, graph: Graph, tensors: Mapping[str, torch.Tensor], groups: Collection[int]
) -> Iterator[None]:
    """Replace the weights that read the units of some groups with zeros, and restore the same tensors afterwards.

    Args:
        model: The model.
        graph: The dependencies between its parameters.
        tensors: All its parameters and buffers by name.
        groups: Indices of the groups.
    """
    keep = [np.full(group.units, number not in groups) for number, group in enumerate(graph.groups)]
    located = locate_removed(Removal(graph=graph, keep=tuple(keep)), tensors, {Role.CONSUMER})
    by_id = {id(tensor): tensor for tensor in tensors.values()}
    readers = [(by_id[key], axes) for key, axes in located.items()]
    pool: dict[Any, torch.Tensor] = {}
    for tensor, _ in readers:
        kind = tensor.dtype, tensor.device
        if kind not in pool or pool[kind].numel() < tensor.numel():
            pool[kind] = tensor.new_zeros(tensor.numel(), requires_grad=False).detach()
    journal = Journal()
    try:
        journal.replace_tensors(model, {id(tensor): _make_zero(tensor, axes, pool) for tensor, axes in readers})
        yield
    finally:
        journal.roll_back()


def _make_zero(tensor: torch.Tensor, axes: AxisIndices, pool: Mapping[Any, torch.Tensor]) -> torch.Tensor:
    """Return a tensor with zeros at some indices; those that are zero everywhere share their memory."""
    if any(len(indices) == tensor.shape[axis] for axis, indices in axes.items()):
        zero = pool[tensor.dtype, tensor.device][: tensor.numel()].view(tensor.shape)
    else:
        zero = tensor.detach().clone()
        for axis, indices in axes.items():
            zero.index_fill_(axis, torch.from_numpy(np.ascontiguousarray(indices)).to(tensor.device), 0)
    return nn.Parameter(zero, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else zero
