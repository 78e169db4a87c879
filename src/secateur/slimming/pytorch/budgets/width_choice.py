"""Choose the widths with the lowest loss under an estimated cost."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.allocations.knapsack import LossCurve, WidthFrontier
from secateur.slimming.pytorch.costs.base import CostModel

__all__ = ["WidthChooser"]

MAX_EXPANSIONS = 3
"""Number of times that costs are tabulated: for the dense model, and again around the chosen widths."""

MAX_SCAN = 64
"""Number of choices to try after the last one that fits, because costs are not exactly additive."""

Widths = Mapping[int, int]
Tables = Mapping[int, list[float]]


class WidthChooser:
    """Solves the knapsack of losses against estimated costs.

    The knapsack adds up the costs of groups, but a layer between two groups shrinks with both. So its solutions are
    ranked by the estimate for the whole model, and costs are tabulated again around the first solution.

    Args:
        curves: Group index → its loss curve.
        costs: The cost model.
    """

    def __init__(self, curves: Mapping[int, LossCurve], costs: CostModel) -> None:
        self._curves, self._costs = curves, costs
        self._frontiers: list[WidthFrontier] = []

    def choose(self, limit: float) -> dict[int, int]:
        """Return the widths with the lowest loss whose estimated cost is at most `limit`, else the cheapest widths."""
        if not self._frontiers:
            self._build_frontiers(limit)
        fitting = []
        for order, frontier in enumerate(self._frontiers):
            number = self._find_last(frontier, limit)
            if number >= 0:
                fitting.append((float(frontier.losses[number]), order, number))
        if fitting:
            _, order, number = min(fitting)
            return self._frontiers[order].get_widths(number)
        return min((frontier.get_widths(0) for frontier in self._frontiers), key=self._costs.estimate)

    def sum_losses(self, kept: Widths) -> float:
        """Return the sum of the losses of some widths."""
        return sum(dict(curve)[kept[number]] for number, curve in self._curves.items())

    def _build_frontiers(self, limit: float) -> None:
        base: Widths = {}
        tables: Tables = {}
        for _ in range(MAX_EXPANSIONS):
            before, tables = tables, self._tabulate(base)
            if tables == before:
                return
            self._frontiers.append(WidthFrontier(self._curves, tables))
            base = self.choose(limit)

    def _tabulate(self, base: Widths) -> Tables:
        """Return what the widths of each group save if the others have the base widths."""
        tables = {}
        for number, curve in self._curves.items():
            costs = self._costs.tabulate(number, [kept for kept, _ in curve], base)
            tables[number] = [cost - costs[0] for cost in costs]
        return tables

    def _find_last(self, frontier: WidthFrontier, limit: float) -> int:
        """Return the number of the last choice that fits, or -1: bisect, then try those that follow."""

        def fits(number: int) -> bool:
            return self._costs.estimate(frontier.get_widths(number)) <= limit

        low, high = -1, len(frontier.costs)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        following = range(low + 1, min(low + 1 + MAX_SCAN, len(frontier.costs)))
        return max((number for number in following if fits(number)), default=low)
