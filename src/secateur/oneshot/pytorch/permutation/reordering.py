"""Reorder the channels of a model before it is pruned, and restore their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur.distributed.pytorch.team import Team
from secateur.errors import CalibrationError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Group
from secateur.graph.orders import FreeOrder
from secateur.graph.pytorch import trace_orders
from secateur.oneshot.pytorch.calibration.batches import Batch, calibration_mode, move_to
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.permutation.grouped_layers import Side, find_grouped_layers, find_sides
from secateur.oneshot.pytorch.permutation.order_search import OrderSearch
from secateur.planning.planner import Plan
from secateur.results.permutation_report import PermutationReport, PermutedGroup

__all__ = ["Reordering"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

MIN_BATCHES, MIN_VALUES = 8, 8192
"""How many batches, and values such as tokens in them, are enough to measure the norms of inputs."""


class Reordering:
    """The order of the channels of a model.

    Args:
        model: The model.
        plan: How it will be pruned.
        batches: The calibration data, or the share of this rank.
        team: The ranks that prune together; by default one process.
    """

    def __init__(self, model: nn.Module, plan: Plan, batches: Sequence[Batch], team: Team | None = None) -> None:
        self.model = unwrap_model(model)
        self.batches = batches
        self.team = team or Team()
        self._tensors = list_tensors(self.model)
        self._layers = find_grouped_layers(plan)
        self._applied: list[tuple[Group, Indices]] = []

    def search(self, show: Callable[[str, int, int], object]) -> tuple[PermutationReport, dict[str, list[int]]]:
        """Search an order for each group of channels, and reorder them.

        Args:
            show: Called with the name of each group that is finished, its number and the number of groups.

        Returns:
            The groups, and the order of each by its name, equal on all ranks.

        Raises:
            SecateurError: The data is unusable, a weight is not finite, or the outputs changed. The model is unchanged.
        """
        searches = self._list_searches()
        norms = self._measure_norms(searches)
        permuted, orders = [], {}
        with self._check_outputs():
            for number, search in enumerate(searches, start=1):
                group, order = self._run_search(search, norms)
                self._apply(search.free.group, order)
                self._reorder_norms(norms, search.free.group, order)
                permuted.append(group)
                orders[group.name] = order.tolist()
                show(group.name, number, len(searches))
        return PermutationReport(groups=tuple(permuted)), orders

    def apply(self, orders: Mapping[str, Sequence[int]]) -> None:
        """Reorder groups as another `search` of the same model did.

        Args:
            orders: The order of each group by its name.
        """
        groups = {free.group.name: free.group for free in self._trace()}
        with self._check_outputs():
            for name, order in orders.items():
                self._apply(groups[name], np.array(order, dtype=np.int64))

    def restore(self) -> None:
        """Restore the order of all groups."""
        while self._applied:
            group, order = self._applied.pop()
            _move_slices(self._tensors, group, order.argsort())

    def _apply(self, group: Group, order: Indices) -> None:
        self._applied.append((group, order))
        _move_slices(self._tensors, group, order)

    @property
    def _device(self) -> torch.device | None:
        return next((weight.device for weight in self.model.parameters()), None)

    @property
    def _example_inputs(self) -> Any:
        first = self.batches[0]
        return move_to(first.kwargs or first.args, self._device)

    def _trace(self) -> list[FreeOrder]:
        return trace_orders(self.model, self._example_inputs)

    def _list_searches(self) -> list[OrderSearch]:
        """Return the groups whose order matters to a layer."""
        found = ((free, find_sides(free, self._tensors, self._layers)) for free in self._trace())
        return [OrderSearch(free=free, sides=tuple(sides)) for free, sides in found if sides]

    @contextmanager
    def _check_outputs(self) -> Iterator[None]:
        """Compare the outputs of the model before and after, and restore the order of channels after an error."""
        example_run = ExampleRun(self.model, self._example_inputs)
        try:
            yield
            _refuse_change(example_run)
        except BaseException:
            self.restore()
            raise

    def _measure_norms(self, searches: Sequence[OrderSearch]) -> dict[str, Floats]:
        """Return the norms of the inputs of each layer, of shape (1, kernel positions, input channels)."""
        layers = {side.layer.name: side.layer for search in searches for side in search.sides}
        statistics = InputStatistics({name: layer.module for name, layer in layers.items()}, with_gram=False)
        values = 0
        with calibration_mode(self.model), statistics.record_inputs():
            for number, batch in enumerate(self.batches, start=1):
                statistics.start_batch(batch.keep)
                batch.run(self.model, self._device)
                values += max(tensor.numel() for tensor in batch.tensors)
                if self.team.size * min(number / MIN_BATCHES, values / MIN_VALUES) >= 1:
                    break
        statistics.add_other_ranks(self.team)
        if layers:
            statistics.group_layers()
        return {
            name: statistics.norms(name).cpu().numpy().reshape(1, *layer.view.canonical_shape[1:])
            for name, layer in layers.items()
        }

    def _run_search(self, search: OrderSearch, norms: Mapping[str, Floats]) -> tuple[PermutedGroup, Indices]:
        """Return the result of rank 0 on every rank."""
        result = search.run(norms) if self.team.is_leader else None
        shared = self.team.share(result)
        assert shared is not None
        return shared

    def _reorder_norms(self, norms: dict[str, Floats], group: Group, order: Indices) -> None:
        """Reorder the norms of the layers that read a group."""
        for member in group.members:
            layer = self._layers.get(id(self._tensors[member.parameter]))
            if layer is not None and layer.name in norms and layer.view.input_axes == (member.axis,):
                side = Side(layer=layer, axis="input", indices=member.index_map.indices())
                norms[layer.name] = side.reorder(norms[layer.name], order)


def list_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers under all their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def _refuse_change(example_run: ExampleRun) -> None:
    if not example_run.is_close(example_run.tolerance):
        raise CalibrationError(
            "The outputs of the model changed when its channels were reordered, so it was restored. Exclude layers "
            "whose code depends on the order of channels."
        )


def _move_slices(tensors: Mapping[str, torch.Tensor], group: Group, order: Indices) -> None:
    """Reorder all slices of units, in place."""
    with torch.no_grad():
        for member in group.members:
            tensor, indices = tensors[member.parameter], member.index_map.indices()
            source = torch.arange(tensor.shape[member.axis])
            source[indices.reshape(-1)] = torch.from_numpy(indices[order].reshape(-1))
            tensor.copy_(tensor.index_select(member.axis, source.to(tensor.device)))
