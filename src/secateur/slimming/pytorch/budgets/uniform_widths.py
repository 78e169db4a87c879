"""Choose equal widths for groups of the same kind, as the configurations of transformers models can describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.allocations.knapsack import LossCurve
from secateur.slimming.pytorch.costs.base import CostModel
from secateur.slimming.selection import find_equal_groups

__all__ = ["UniformCost", "UniformWidths"]


class UniformWidths:
    """Groups of the same kind, each represented by the one with the smallest number.

    Args:
        curves: Group index → its loss curve.
        costs: The cost model.

    Attributes:
        curves: Index of a representative → the sum of the curves of its kind.
        costs: The cost model of equal widths.
    """

    def __init__(self, curves: Mapping[int, LossCurve], costs: CostModel) -> None:
        self._kinds: dict[int, Sequence[int]] = {}
        left = set(curves)
        while left:
            first = min(left)
            equal = sorted(find_equal_groups(costs.graph.groups, {first}) & left)
            self._kinds[first] = [
                number for number in equal if _list_widths(curves[number]) == _list_widths(curves[first])
            ]
            left -= {*self._kinds[first]}
        self.curves = {first: _add_curves([curves[number] for number in kind]) for first, kind in self._kinds.items()}
        self.costs = UniformCost(costs, self)

    def expand(self, kept: Mapping[int, int]) -> dict[int, int]:
        """Return group index → kept units, for all groups, given those of the representatives."""
        return {number: count for first, count in kept.items() for number in self._kinds[first]}


class UniformCost(CostModel):
    """The cost of equal widths; see `UniformWidths`.

    Args:
        costs: The cost model.
        widths: The groups of the same kind.
    """

    def __init__(self, costs: CostModel, widths: UniformWidths) -> None:
        self._costs, self._widths = costs, widths
        self.graph, self.dense, self.quantity = costs.graph, costs.dense, costs.quantity

    def estimate(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.estimate`."""
        return self._costs.estimate(self._widths.expand(kept))

    def measure(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.measure`."""
        return self._costs.measure(self._widths.expand(kept))


def _list_widths(curve: LossCurve) -> list[int]:
    return [kept for kept, _ in curve]


def _add_curves(curves: Sequence[LossCurve]) -> LossCurve:
    """Add up the losses of curves with the same widths."""
    return [(points[0][0], sum(loss for _, loss in points)) for points in zip(*curves, strict=True)]
