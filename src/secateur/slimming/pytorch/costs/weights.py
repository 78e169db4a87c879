"""Costs that follow from the shapes of parameters and buffers alone: their number, and their memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.graph import Graph
from secateur.slimming.pytorch.costs.base import CostModel, check_widths
from secateur.slimming.pytorch.costs.slim_copy import make_slim_copy
from secateur.slimming.pytorch.costs.weight_shapes import TensorShape, read_shapes

__all__ = ["ByteCost", "ParameterCost"]


class WeightCost(CostModel):
    """Adds up the elements of tensors, each with a factor.

    Estimates are exact, except for groups that keep no unit: what else is removed with their branch, such as a bias, is
    counted in a slimmed copy of the model.

    Args:
        model: The dense model, without wrappers.
        graph: The dependencies between its parameters.
        example_inputs: Typical inputs of the model.

    Raises:
        LayerError: The graph belongs to another model.
    """

    def __init__(self, model: nn.Module, graph: Graph, example_inputs: Any) -> None:
        self.graph, self._model, self._inputs = graph, model, example_inputs
        shapes = read_shapes(model, graph)
        factors = {id(tensor): self._get_factor(tensor) for tensor in self._list_tensors(model)}
        self._tensors = [(shapes[key], factor) for key, factor in factors.items()]
        self._by_group: dict[int, list[tuple[TensorShape, int]]] = {}
        for shape, factor in self._tensors:
            for number in shape.units:
                self._by_group.setdefault(number, []).append((shape, factor))
        self.dense = float(_count(self._tensors, {}))

    def estimate(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.estimate`."""
        check_widths(self.graph, kept)
        return float(_count(self._tensors, kept))

    def measure(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.measure`."""
        if all(kept.values()):
            return self.estimate(kept)
        slimmed = make_slim_copy(self._model, self.graph, kept, self._inputs).model
        unique = {id(tensor): tensor for tensor in self._list_tensors(slimmed)}
        return float(sum(tensor.numel() * self._get_factor(tensor) for tensor in unique.values()))

    def tabulate(self, group: int, widths: Sequence[int], base: Mapping[int, int] | None = None) -> list[float]:
        """See `CostModel.tabulate`; only tensors of the group are counted again."""
        kept, own = dict(base or {}), self._by_group.get(group, [])
        rest = self.estimate(kept) - _count(own, kept)
        table = []
        for width in widths:
            check_widths(self.graph, {group: width})
            table.append(rest + _count(own, kept | {group: width}))
        return table

    @abstractmethod
    def _list_tensors(self, model: nn.Module) -> Iterator[torch.Tensor]:
        """Return the tensors that count."""

    @abstractmethod
    def _get_factor(self, tensor: torch.Tensor) -> int:
        """Return what one element of a tensor costs."""


class ParameterCost(WeightCost):
    """The number of parameters. Tied parameters count once."""

    quantity = "parameters"

    def _list_tensors(self, model: nn.Module) -> Iterator[torch.Tensor]:
        return model.parameters()

    def _get_factor(self, tensor: torch.Tensor) -> int:  # noqa: ARG002 - all have the same factor
        return 1


class ByteCost(WeightCost):
    """The memory of all parameters and buffers in bytes, including buffers that are not saved. Tied ones count once."""

    quantity = "bytes"

    def _list_tensors(self, model: nn.Module) -> Iterator[torch.Tensor]:
        yield from model.parameters()
        yield from model.buffers()

    def _get_factor(self, tensor: torch.Tensor) -> int:
        return tensor.element_size()


def _count(tensors: Sequence[tuple[TensorShape, int]], kept: Mapping[int, int]) -> int:
    return sum(factor * shape.count(kept) for shape, factor in tensors)
