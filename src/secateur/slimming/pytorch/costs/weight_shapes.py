"""Sizes of parameters and buffers as functions of the numbers of kept units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from secateur.graph import Graph
from secateur.slimming.pytorch.tensors import list_tensors
from secateur.slimming.selection import check_members

__all__ = ["TensorShape", "read_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """The shape of a parameter or buffer, and what shortens its axes.

    Attributes:
        shape: Its shape in the dense model.
        uses: Axis → number of a group → indices along the axis that belong to each unit.
        units: Group index → its units.
    """

    shape: tuple[int, ...]
    uses: Mapping[int, Mapping[int, int]]
    units: Mapping[int, int]

    def count(self, kept: Mapping[int, int]) -> int:
        """Return the number of elements if groups keep some numbers of units; those that are missing keep all."""
        return math.prod(
            length - sum(width * (self.units[number] - kept.get(number, self.units[number])) for number, width in uses)
            for length, uses in self._list_axes()
        )

    def _list_axes(self) -> Iterable[tuple[int, Iterable[tuple[int, int]]]]:
        return ((length, self.uses.get(axis, {}).items()) for axis, length in enumerate(self.shape))


def read_shapes(model: nn.Module, graph: Graph) -> dict[int, TensorShape]:
    """Return the shape of each parameter and buffer, by its id; tied ones have one id.

    Raises:
        LayerError: The graph belongs to another model.
    """
    tensors = list_tensors(model)
    check_members(graph, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    uses: dict[int, dict[int, dict[int, int]]] = {id(tensor): {} for tensor in tensors.values()}
    for number in range(len(graph.groups)):
        for (key, axis), width in _count_indices(graph, number, tensors).items():
            uses[key].setdefault(axis, {})[number] = width
    unique = {id(tensor): tensor for tensor in tensors.values()}
    return {
        key: TensorShape(
            shape=tuple(tensor.shape),
            uses=uses[key],
            units={number: graph.groups[number].units for axis in uses[key].values() for number in axis},
        )
        for key, tensor in unique.items()
    }


def _count_indices(graph: Graph, number: int, tensors: Mapping[str, torch.Tensor]) -> dict[tuple[int, int], int]:
    """Return (id of a tensor, axis) → different indices that each unit of a group has along it."""
    rows: dict[tuple[int, int], list[np.ndarray]] = {}
    for member in graph.groups[number].members:
        rows.setdefault((id(tensors[member.parameter]), member.axis), []).append(member.index_map.indices())
    widths = {}
    for key, parts in rows.items():
        units = np.sort(np.concatenate(parts, axis=1), axis=1)
        different = 1 + (units[:, 1:] != units[:, :-1]).sum(axis=1)
        widths[key] = int(different[0])
    return widths
