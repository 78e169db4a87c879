"""Layers whose pruning depends on the order of channels, and what they keep of their scores.

Legend: O output channels, K kernel positions, I input channels of a layer; C channels that are reordered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.frameworks.view import WeightView
from secateur.graph.orders import FreeOrder
from secateur.patterns import BasePattern
from secateur.patterns.block import BlockPattern
from secateur.patterns.channel_permutation import NMGoal
from secateur.patterns.nm import NMPattern
from secateur.patterns.transposable import TransposableNMPattern
from secateur.planning.planner import Plan

__all__ = ["GroupedLayer", "Side", "find_grouped_layers", "find_sides", "refuse_patterns"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Axis = Literal["input", "output"]
Kind = tuple[str, int, int]
"""How channels are grouped: ``("nm", N, M)``, or ``("block", 0, channels of a block)``."""

AXES: tuple[Axis, ...] = ("output", "input")


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedLayer:
    """A layer whose pruning depends on the order of its channels.

    Attributes:
        name: Its name.
        module: The layer.
        view: Where its channels are.
        pattern: Its pattern.
    """

    name: str
    module: nn.Module
    view: WeightView
    pattern: BasePattern

    @property
    def weight(self) -> torch.Tensor:
        """Its weight."""
        weight: torch.Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def block(self) -> tuple[int, int]:
        """How many outputs and inputs its pattern treats together; see `_read_block`."""
        return _read_block(self.pattern)

    def sum_blocks(self, scores_OKI: Floats) -> Floats:
        """Return the score of each block, of shape (blocks of outputs, K, blocks of inputs)."""
        outputs, inputs = self.block
        count, positions, width = scores_OKI.shape
        blocks = scores_OKI.reshape(count // outputs, outputs, positions, width // inputs, inputs)
        return np.asarray(blocks.sum(axis=(1, 4)))

    def measure_kept(self, scores_OKI: Floats) -> float:
        """Return the sum of the scores that are kept."""
        if isinstance(self.pattern, NMPattern):
            goal = NMGoal(self.pattern.keep, self.pattern.group)
            return goal.measure(scores_OKI.reshape(-1, scores_OKI.shape[2]))
        return float(self._sort_kept(self.sum_blocks(scores_OKI.astype(np.float64))).sum())

    def find_threshold(self, scores_OKI: Floats) -> float:
        """Return the lowest score of a block that is kept; infinity if none is."""
        return float(self._sort_kept(self.sum_blocks(scores_OKI)).min(initial=np.inf))

    def _sort_kept(self, blocks: Floats) -> Floats:
        """Return the scores of the blocks that are kept at the target."""
        pruned = round(self.pattern.target_sparsity * blocks.size)
        return np.sort(blocks, axis=None)[pruned:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """The inputs or the outputs of a layer, as channels of a group.

    Attributes:
        layer: The layer.
        axis: Whether the channels are its inputs or its outputs.
        indices: The positions of each unit of the group, of shape (units, positions of a unit).
    """

    layer: GroupedLayer
    axis: Axis
    indices: Indices

    @property
    def kind(self) -> Kind:
        """How the channels are grouped."""
        size = self.layer.block[self.axis == "input"]
        return (
            ("nm", self.layer.pattern.keep, size) if isinstance(self.layer.pattern, NMPattern) else ("block", 0, size)
        )

    @property
    def view_axes(self) -> tuple[int, ...]:
        """The axes of the weight as stored that have the channels."""
        return self.layer.view.input_axes if self.axis == "input" else self.layer.view.output_axes

    def locate_row(self, row: Indices) -> list[Indices]:
        """Return the positions of units that can change places, if they fill several whole groups.

        A unit can have several positions, such as a channel of a key/value head in each of the query heads that share
        it.
        """
        size, columns = self.kind[2], self.indices[row].T
        is_whole = [len(row) % size == 0 == start % size for start in columns[:, 0].tolist()]
        return [
            positions
            for positions, fits in zip(columns, is_whole, strict=True)
            if 1 < size < len(row) and fits and (np.diff(positions) == 1).all()
        ]

    def take_scores(self, scores_OKI: Floats, positions: Indices) -> Floats:
        """Return scores of shape (rows, C), of whole blocks along the other axis."""
        outputs, inputs = self.layer.block
        if self.axis == "input":
            count, kernel, _ = scores_OKI.shape
            columns = scores_OKI[:, :, positions].reshape(count // outputs, outputs, kernel, len(positions))
            return np.asarray(columns.sum(axis=1).reshape(-1, len(positions)))
        rows = scores_OKI[positions].reshape(len(positions), -1, inputs)
        return np.ascontiguousarray(rows.sum(axis=2).T)

    def reorder(self, scores_OKI: Floats, order: Indices) -> Floats:
        """Return scores with the units in another order."""
        axis = 2 if self.axis == "input" else 0
        source = np.arange(scores_OKI.shape[axis])
        source[self.indices.reshape(-1)] = self.indices[order].reshape(-1)
        return np.take(scores_OKI, source, axis=axis)


def find_grouped_layers(plan: Plan) -> dict[int, GroupedLayer]:
    """Return the layers whose pruning depends on the order of channels, by the identity of their weights.

    Grouped convolutions are left out, and experts that are stacked in one parameter.
    """
    layers = {}
    for pattern in plan.patterns:
        if max(_read_block(pattern)) > 1:
            for name, view in pattern.views.items():
                module = pattern.modules[name]
                if isinstance(module, nn.Module) and view.groups == 1:
                    layer = GroupedLayer(name=name, module=module, view=view, pattern=pattern)
                    layers[id(layer.weight)] = layer
    return layers


def find_sides(free: FreeOrder, tensors: Mapping[str, torch.Tensor], layers: Mapping[int, GroupedLayer]) -> list[Side]:
    """Return where the order of units matters. If blocks of several sizes do, the largest decide."""
    sides: list[Side] = []
    for member in free.group.members:
        if (layer := layers.get(id(tensors[member.parameter]))) is not None:
            for axis in AXES:
                side = Side(layer=layer, axis=axis, indices=member.index_map.indices())
                if side.view_axes == (member.axis,) and any(map(side.locate_row, free.rows)):
                    sides.append(side)
    kinds = {side.kind for side in sides}
    if {name for name, _, _ in kinds} == {"block"}:
        return [side for side in sides if side.kind == max(kinds)]
    return sides if len(kinds) == 1 else []


def refuse_patterns(patterns: Any) -> None:
    """Raise `ConfigError` if the order of channels does not matter to any pattern."""
    if not any(max(_read_block(pattern)) > 1 for pattern in patterns):
        names = ", ".join(dict.fromkeys(repr(pattern.pattern) for pattern in patterns)) or "no layers"
        raise ConfigError(
            f"permute needs N:M or blocks of several channels, such as 2:4 or 4x1, found {names}, for which no order "
            f"of channels is better, or none can be searched. Leave permute out."
        )


def _read_block(pattern: BasePattern) -> tuple[int, int]:
    """Return how many outputs and inputs a pattern treats together.

    N:M compares M inputs, and a block has N outputs and M inputs. For 1x1, whole channels and heads, 1 and 1: their
    order does not matter. The same goes for other patterns, for which no search exists, such as transposable N:M.
    """
    if isinstance(pattern, NMPattern) and not isinstance(pattern, TransposableNMPattern):
        return 1, pattern.group
    if isinstance(pattern, BlockPattern) and "channel" not in pattern.pattern:
        outputs, inputs = map(int, pattern.pattern.split("x"))
        return outputs, inputs
    return 1, 1
