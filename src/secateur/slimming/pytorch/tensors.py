"""Find the parameters and buffers that members of groups name, and their zero units."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.graph import Graph, Group, Role
from secateur.slimming.removal import Removal

__all__ = ["AxisIndices", "find_zero_units", "list_tensors", "locate_removed"]

Flags = npt.NDArray[np.bool_]
AxisIndices = dict[int, npt.NDArray[np.int64]]
"""Axis → the removed indices along it."""


def list_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers under all their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def find_zero_units(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> list[Flags]:
    """Return for each group which units nothing reads: all weights that do are zero, of shape (units,)."""
    cache: dict[tuple[int, int], Flags] = {}
    return [_find_zeros(group, tensors, cache) for group in graph.groups]


def _find_zeros(group: Group, tensors: Mapping[str, torch.Tensor], cache: dict[tuple[int, int], Flags]) -> Flags:
    readers = [member for member in group.members if member.role is Role.CONSUMER]
    is_zero = np.full(group.units, bool(readers))
    for member in readers:
        tensor = tensors[member.parameter].detach()
        key = id(tensors[member.parameter]), member.axis
        if key not in cache:
            others = [axis for axis in range(tensor.dim()) if axis != member.axis]
            nonzero = (tensor != 0).any(dim=others) if others else tensor != 0
            cache[key] = ~nonzero.cpu().numpy()
        is_zero &= cache[key][member.index_map.indices()].all(axis=1)
    return is_zero


def locate_removed(
    removal: Removal, tensors: Mapping[str, torch.Tensor], roles: Collection[Role] = frozenset(Role)
) -> dict[int, AxisIndices]:
    """Return what is removed from each tensor: id of the tensor → axis → indices, sorted.

    Args:
        removal: The units to remove.
        tensors: All parameters and buffers by name.
        roles: The roles of the members to consider.
    """
    located: dict[int, AxisIndices] = {}
    for (name, axis), indices in removal.list_removed(roles).items():
        axes = located.setdefault(id(tensors[name]), {})
        axes[axis] = np.union1d(axes[axis], indices) if axis in axes else indices
    return located
