"""Weights that are divided over processes, as by ``fully_shard`` or tensor parallelism.

Every process has a shard of the mask next to its shard of the weight, so that steps between mask updates send nothing.
At a mask update, each process scores the units of its part (see `secateur.distributed.pytorch.shards`), and the
histograms of the scores are added up: 256 KiB for each of two passes. Units that span the rows of several processes,
such as those of ``channelx1``, are scored by all of them together, and every process ranks them in the same way. Other
layers are gathered, and every process ranks them in the same way: those of pattern locks, of criteria that need a whole
weight, and of tensors that are divided along another axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from secateur._array import Array, count_true
from secateur.criteria import get_criterion
from secateur.distributed.pytorch.shards import (
    RowParts,
    ShardLayout,
    ShardPeers,
    ShardRows,
    get_local,
    is_sharded,
    reshard,
)
from secateur.frameworks.pytorch import PytorchFramework, apply_mask, read_canonical
from secateur.masking.run_options import RunOptions
from secateur.patterns import BasePattern
from secateur.patterns.parts import LayerPeers, are_shared, count_rows, take_part, take_view
from secateur.patterns.reduction import REDUCTIONS, find_steps
from secateur.training.pytorch.latent_weight import LatentParameter
from secateur.training.pytorch.weight import ParameterSlot, TrainedParameter

__all__ = ["ShardedLatentParameter", "ShardedParameter", "divide_pattern", "make_weight"]


class ShardedParameter(TrainedParameter):
    """A pruned weight that is divided over processes.

    Attributes:
        layout: How it is divided.
        parts: The rows that each process ranks or scores; ``None``: each of them ranks the whole weight.
        step: Number of rows of a unit; ``None``: its units cannot be divided by rows. With parts, all processes score
            them together.
        is_divided: Whether processes rank or score parts, unless there are too few rows for so many processes.
    """

    def __init__(self, name: str, pattern: BasePattern, slot: ParameterSlot) -> None:
        super().__init__(name, pattern, slot)
        self.layout = ShardLayout(self.parameter)
        self.parts: RowParts | None = None
        self.step: int | None = None
        self.is_divided = False
        self.part_view = self.view

    def divide(self, step: int) -> None:
        """Let each process rank its part, if all processes have units of `step` rows."""
        self.step, self.is_divided = step, True
        self._set_parts(self.layout.divide_rows(step))

    def share(self) -> None:
        """Let each process score the rows that it holds, if all processes have rows, and rank all units."""
        self.is_divided = True
        self._set_parts(self.layout.find_rows())

    def make_peers(self, units: int) -> LayerPeers | None:
        """Return the processes that have the parts of this weight; ``None``: each of them ranks the whole weight.

        Args:
            units: Number of units over all processes.
        """
        if self.parts is None:
            return None
        weights = ShardPeers(self.parts.ranks, math.prod(self.shape))
        if self.step is None:
            return LayerPeers(weights=weights, rows=ShardRows(self.parts))
        return LayerPeers(weights=weights, units=ShardPeers(self.parts.ranks, units))

    def _set_parts(self, parts: RowParts | None) -> None:
        if parts is not None:
            self.parts, self.part_view = parts, take_view(self.view, parts.rows)

    @property
    def is_scored_alone(self) -> bool:
        """Whether the scores of the part need nothing from other processes."""
        return self.step is not None and self.parts is not None and self.parts.is_aligned

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

    def show_gradient_sum(self, dtype: torch.dtype) -> torch.Tensor:
        """See `TrainedParameter.show_gradient_sum`; returns a DTensor."""
        shown: torch.Tensor = self.layout.wrap(super().show_gradient_sum(dtype))
        return shown

    def load_gradient_sum(self, total: torch.Tensor | None) -> None:
        """See `TrainedParameter.load_gradient_sum`; a plain tensor is the sum for the whole weight."""
        if total is not None:
            total = get_local(total) if is_sharded(total) else self.layout.take(total)
        super().load_gradient_sum(total)

    def count_kept(self) -> int:
        """See `PrunedWeight.count_kept`. This is collective."""
        return self.layout.add(0 if self.mask is None else count_true(self.mask))

    def clear_optimizer_state(self, mask: torch.Tensor) -> None:
        """See `TrainedParameter.clear_optimizer_state`. Unless parts are shards, this is collective."""
        super().clear_optimizer_state(self._distribute(mask))

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


class ShardedLatentParameter(LatentParameter, ShardedParameter):
    """A weight that is divided over processes, and whose pruned values keep training; every process has its shard."""

    def canonical(self) -> torch.Tensor:
        """See `LatentParameter.canonical`. Unless parts are shards, this is collective."""
        return read_canonical(self._collect(self._read_all()), self.part_view)

    def show_latent(self) -> torch.Tensor:
        """Return the latent values as a DTensor; those of the weight if pruned weights do not train."""
        shown: torch.Tensor = self.layout.wrap((self.stored if self.latent is None else self.latent).clone())
        return shown

    def load_latent(self, latent: torch.Tensor | None) -> None:
        """See `LatentParameter.load_latent`; a plain tensor has the values of the whole weight."""
        if latent is not None:
            latent = get_local(latent) if is_sharded(latent) else self.layout.take(latent)
        super().load_latent(latent)


class PartFramework(PytorchFramework):
    """Reads the parts of weights, which stand in for their layers."""

    def read_weight(self, layer: Any) -> Array:
        """Return the part of a weight that this process ranks."""
        return layer.read_part()


def make_weight(name: str, pattern: BasePattern, slot: ParameterSlot) -> TrainedParameter:
    """Make the weight of a layer, according to the type of its parameter."""
    kinds: tuple[type[TrainedParameter], type[TrainedParameter]] = TrainedParameter, ShardedParameter
    if pattern.config.kind == "sr_ste":
        kinds = LatentParameter, ShardedLatentParameter
    return kinds[is_sharded(slot.parameter)](name, pattern, slot)


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
    if pattern.config.kind != "pattern_lock" and (options is None or options.observer is None):
        for layer, weight in sharded.items():
            _divide_weight(pattern, layer, weight)
    counts = {layer: units.count for units in pattern.units.values() for layer in units.parts}
    peers = {
        layer: known for layer, weight in sharded.items() if (known := weight.make_peers(counts[layer])) is not None
    }
    part = take_part(pattern, {layer: sharded[layer].part_view for layer in peers}, peers)
    part.framework, part.modules = PartFramework(), {**pattern.modules, **weights}
    return part


def _divide_weight(pattern: BasePattern, layer: str, weight: ShardedParameter) -> None:
    """Let each process rank or score a part of a weight, if that gives the scores of the whole weight."""
    criterion = get_criterion(pattern.config, layer)
    has_own_parts = type(pattern).interpolate_masks is not BasePattern.interpolate_masks
    if not criterion.scores_parts or has_own_parts:
        return
    if (step := count_rows(pattern, layer)) is not None:
        weight.divide(step)
    elif are_shared(pattern, layer) and find_steps(REDUCTIONS.find(criterion.reduction or pattern.reduction)):
        weight.share()
