"""Search an order of the units of one group, given the norms of the inputs of the layers that read them.

Legend: O output channels, K kernel positions, I input channels of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.errors import LayerError
from secateur.graph.orders import FreeOrder
from secateur.oneshot.pytorch.permutation.grouped_layers import Side
from secateur.patterns.channel_permutation import BlockGoal, NMGoal, search_permutation
from secateur.results.permutation_report import PermutedGroup

__all__ = ["OrderSearch"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

TINY = float(np.finfo(np.float32).tiny)
"""Divisor of scores that are all zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderSearch:
    """The units of a group, and the layers to which their order matters.

    Attributes:
        free: The units.
        sides: Where the order matters.
    """

    free: FreeOrder
    sides: tuple[Side, ...]

    def run(self, norms: Mapping[str, Floats]) -> tuple[PermutedGroup, Indices]:
        """Search an order.

        Args:
            norms: Layer → norms of its inputs, of shape (1, K, I).

        Returns:
            What is kept before and after, and the unit at each position.

        Raises:
            LayerError: A weight is not finite.
        """
        scores = self._score(norms)
        thresholds = {
            side.layer.name: side.layer.find_threshold(scores[side.layer.name]) if side.kind[0] == "block" else 0.0
            for side in self.sides
        }
        group = self.free.group
        order = np.arange(group.units)
        for row in self.free.rows:
            order[row] = row[self._search_row(row, scores, thresholds)]
        total = max(sum(float(values.sum(dtype=np.float64)) for values in scores.values()), TINY)
        before, after = (self._measure(scores, item) / total for item in (np.arange(group.units), order))
        if after <= before:
            order, after = np.arange(group.units), before
        names = tuple(dict.fromkeys(side.layer.name for side in self.sides))
        return PermutedGroup(name=group.name, units=group.units, layers=names, before=before, after=after), order

    def _score(self, norms: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return the scores of each layer, of shape (O, K, I): squared weights × energy of inputs, at most 1."""
        magnitudes = {}
        for side in self.sides:
            layer = side.layer
            if layer.name not in magnitudes:
                if not layer.weight.isfinite().all():
                    raise LayerError(
                        f"layer {layer.name!r}: its weights must be finite, found inf or nan. Check the model."
                    )
                values = layer.view.to_canonical(layer.weight.detach().float()).abs()
                magnitudes[layer.name] = values.cpu().numpy() * norms[layer.name]
        peak = max(*(float(values.max()) for values in magnitudes.values()), TINY)  # squares could exceed float32
        return {name: np.square(values / peak) for name, values in magnitudes.items()}

    def _search_row(self, row: Indices, scores: Mapping[str, Floats], thresholds: Mapping[str, float]) -> Indices:
        """Return an order of the units of one row."""
        parts, limits = [], []
        for side in self.sides:
            for positions in side.locate_row(row):
                parts.append(side.take_scores(scores[side.layer.name], positions))
                limits.append(np.full(len(parts[-1]), thresholds[side.layer.name], dtype=np.float32))
        if not parts:
            return np.arange(len(row))
        merged = np.concatenate(parts)
        scale = max(float(merged.mean()), TINY)
        kind, keep, size = self.sides[0].kind
        goal = NMGoal(keep, size) if kind == "nm" else BlockGoal(size, np.concatenate(limits) / np.float32(scale))
        return search_permutation(merged / scale, goal)

    def _measure(self, scores: Mapping[str, Floats], order: Indices) -> float:
        """Return the sum of the scores that the layers keep in another order."""
        reordered = dict(scores)
        for side in self.sides:
            reordered[side.layer.name] = side.reorder(reordered[side.layer.name], order)
        layers = {side.layer.name: side.layer for side in self.sides}
        return sum(layer.measure_kept(reordered[name]) for name, layer in layers.items())
