"""Weights that are divided over processes, as by ``fully_shard`` or tensor parallelism.

Every process has the shard of a mask beside the shard of the weight, so that steps between mask updates send nothing.
At a mask update, each process scores the units of its part (see `secateur.distributed.pytorch.shards`), and the
histograms of the scores are added up: 256 KiB for each of two passes. Layers whose units cannot be divided by rows are
gathered, and ranked by every process alike: those of ``channelx1``, of coupled channels and heads, of progressive runs
and pattern locks, of criteria that need a whole weight, and of tensors that are divided along another axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from secateur._array import Array, count_true
from secateur.criteria import get_criterion
from secateur.distributed.pytorch.shards import RowParts, ShardLayout, ShardPeers, get_local, is_sharded, reshard
from secateur.frameworks.pytorch import PytorchFramework, apply_mask, read_canonical
from secateur.masking.run_options import RunOptions
from secateur.patterns import BasePattern
from secateur.patterns.parts import count_rows, take_part, take_view
from secateur.training.pytorch.weight import ParameterSlot, TrainedParameter

__all__ = ["ShardedParameter", "divide_pattern", "make_weight"]


class ShardedParameter(TrainedParameter):
    """A pruned weight that is divided over processes.

    Attributes:
        layout: How it is divided.
        parts: The rows that each process ranks; ``None``: each of them ranks the whole weight.
        step: Number of rows of a unit; ``None``: its units cannot be divided by rows.
    """

    def __init__(self, name: str, pattern: BasePattern, slot: ParameterSlot) -> None:
        super().__init__(name, pattern, slot)
        self.layout = ShardLayout(self.parameter)
        self.parts: RowParts | None = None
        self.step: int | None = None
        self.part_view = self.view

    def divide(self, step: int) -> None:
        """Let each process rank its part, if all processes have units of `step` rows."""
        self.step, self.parts = step, self.layout.divide_rows(step)
        if self.parts is not None:
            self.part_view = take_view(self.view, self.parts.rows)

    @property
    def stored(self) -> torch.Tensor:
        """The shard, detached from autograd."""
        return get_local(self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        """See `PrunedWeight.shape`."""
        return self.layout.shape

    def canonical(self) -> torch.Tensor:
        """See `PrunedWeight.canonical`."""
        return read_canonical(self.read_part(), self.part_view)

    def read_part(self) -> torch.Tensor:
        """See `PrunedWeight.read_part`. Unless parts are shards, this is collective."""
        return self._collect(self.stored)

    def read_mask(self) -> torch.Tensor | None:
        """See `PrunedWeight.read_mask`. Unless parts are shards, this is collective."""
        return None if self.mask is None else self._collect(self.mask)

    def write_mask(self, mask: torch.Tensor) -> None:
        """See `PrunedWeight.write_mask`. Unless parts are shards, this is collective."""
        self.mask = self._distribute(mask)

    def read_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `TrainedParameter.read_tensor`. Unless parts are shards, this is collective."""
        return read_canonical(self._collect(get_local(tensor)), self.part_view)

    def read_gradient_memory(self) -> torch.Tensor | None:
        """Return the shard of the gradient."""
        return None if self.parameter.grad is None else get_local(self.parameter.grad)

    def show_mask(self) -> torch.Tensor:
        """Return a copy of the mask as a DTensor."""
        local = torch.ones_like(self.stored, dtype=torch.bool) if self.mask is None else self.mask.clone()
        shown: torch.Tensor = self.layout.wrap(local)
        return shown

    def load_mask(self, mask: torch.Tensor | None) -> None:
        """See `TrainedParameter.load_mask`; a plain tensor is the whole mask."""
        if mask is None:
            self.mask = None
        else:
            local = get_local(mask) if is_sharded(mask) else self.layout.take(mask)
            self.mask = local.to(self.stored.device, copy=True)

    def apply_to(self, copied: torch.Tensor) -> None:
        """See `TrainedParameter.apply_to`. For a plain tensor, which is whole, this is collective."""
        if self.mask is not None:
            mask = self.mask if is_sharded(copied) else self.layout.gather(self.mask)
            apply_mask(get_local(copied), mask)

    def count_kept(self) -> int:
        """See `PrunedWeight.count_kept`. This is collective."""
        return self.layout.add(0 if self.mask is None else count_true(self.mask))

    def shrink(self, factors: torch.Tensor) -> None:
        """See `TrainedParameter.shrink`."""
        self.stored.mul_(self._distribute(self.part_view.to_stored(factors)).to(self.parameter.dtype))

    def find_problem(self, model: nn.Module) -> str | None:
        """See `TrainedParameter.find_problem`. After a forward pass, the shards are first put back into the model."""
        if (problem := super().find_problem(model)) is None:
            return None
        reshard(model)
        return super().find_problem(model) and problem

    def save_rows(self, values: torch.Tensor, step: int) -> torch.Tensor:
        """Return values of the part in a form that does not depend on how it is divided.

        Args:
            values: One row, or several values, for each `step` rows of the part.
            step: Number of rows of the weight for each row of values.

        Returns:
            A DTensor of shape (rows / step, values), or a plain tensor with all values.
        """
        if self.parts is None:
            return values.reshape(self.shape[0] // step, -1)
        own = values.reshape(len(self.parts.rows) // step, -1)
        if self.parts.is_aligned:
            saved: torch.Tensor = self.layout.wrap(own, (self.shape[0] // step, own.shape[1]))
            return saved
        return torch.cat(self.parts.ranks.gather(own))

    def load_rows(self, saved: torch.Tensor, step: int) -> torch.Tensor:
        """Return the values of the part from what `save_rows` returned, as one axis."""
        if is_sharded(saved):
            return get_local(saved).reshape(-1)
        rows = saved.reshape(self.shape[0] // step, -1)
        if self.parts is not None:
            rows = rows[self.parts.rows.start // step : self.parts.rows.stop // step]
        return rows.reshape(-1)

    def _collect(self, local: torch.Tensor) -> torch.Tensor:
        return self.layout.gather(local) if self.parts is None else self.parts.collect(local)

    def _distribute(self, part: torch.Tensor) -> torch.Tensor:
        return self.layout.take(part) if self.parts is None else self.parts.distribute(part)


class PartFramework(PytorchFramework):
    """Reads the parts of weights, which stand in for their layers."""

    def read_weight(self, layer: Any) -> Array:
        """Return the part of a weight that this process ranks."""
        return layer.read_part()


def make_weight(name: str, pattern: BasePattern, slot: ParameterSlot) -> TrainedParameter:
    """Make the weight of a layer, according to the type of its parameter."""
    kind = ShardedParameter if is_sharded(slot.parameter) else TrainedParameter
    return kind(name, pattern, slot)


def divide_pattern(
    pattern: BasePattern, weights: Mapping[str, TrainedParameter], options: RunOptions | None
) -> BasePattern:
    """Divide the units of sharded weights over the processes. Without such weights, return the pattern itself.

    Args:
        pattern: The pattern of the whole weights.
        weights: Layer → its weight, which is told its part.
        options: The options of the run; scores of an observer are those of whole weights.
    """
    sharded = {name: weight for name in pattern.views if isinstance(weight := weights[name], ShardedParameter)}
    if not sharded:
        return pattern
    if pattern.config.kind == "iterative" and (options is None or options.observer is None):
        for layer, weight in sharded.items():
            step = count_rows(pattern, layer)
            if step is not None and get_criterion(pattern.config, layer).is_elementwise:
                weight.divide(step)
    divided = {layer: weight for layer, weight in sharded.items() if weight.parts is not None}
    peers = {
        layer: ShardPeers(weight.parts.ranks, pattern.units[layer].count)
        for layer, weight in divided.items()
        if weight.parts is not None
    }
    part = take_part(pattern, {layer: weight.part_view for layer, weight in divided.items()}, peers)
    part.framework, part.modules = PartFramework(), {**pattern.modules, **weights}
    return part
