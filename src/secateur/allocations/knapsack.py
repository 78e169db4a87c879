"""Choose the width of every group for the lowest total loss under a budget: a multiple-choice knapsack.

Legend: S states (choices for the first groups that no other choice beats), P points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError, ScoreError

__all__ = ["LossCurve", "WidthFrontier"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LossCurve: TypeAlias = Sequence[tuple[int, float]]
"""Numbers of kept units in descending order, each with its loss. The first number is that of all units."""

MAX_STATES = 16384
"""Maximum number of states after each group. Up to this number, the result is exact."""


class WidthFrontier:
    """All choices that no other choice beats in both cost and loss, found by dynamic programming.

    One frontier covers every capacity. On equal losses, the cheapest choice wins; on equal costs, groups with
    lower indices keep more.

    Args:
        curves: Group index → its curve.
        tables: Group index → the cost of each point of its curve.
        max_states: Maximum number of choices. If there are more, costs are divided into this many intervals, and only
            the choice with the lowest loss remains in each. The sum of the losses is then at most the optimum for a
            capacity that is smaller by one interval per group.

    Attributes:
        costs: Sum of the costs of each choice, ascending, of shape (S,).
        losses: Sum of the losses of each choice, descending, of shape (S,).

    Raises:
        ConfigError: The lengths of a curve and its table differ.
        ScoreError: A loss or a cost is ``nan`` or infinite.

    Examples:
        The first group loses less for the same saving:

        >>> curves = {0: [(4, 0.0), (2, 1.0)], 1: [(4, 0.0), (2, 3.0)]}
        >>> WidthFrontier(curves, {0: [10, 5], 1: [10, 5]}).choose(capacity=15)
        {0: 2, 1: 4}
    """

    def __init__(
        self,
        curves: Mapping[int, LossCurve],
        tables: Mapping[int, Sequence[float]],
        max_states: int = MAX_STATES,
    ) -> None:
        self._widths = {number: [kept for kept, _ in curves[number]] for number in sorted(curves)}
        self._choices: list[tuple[Indices, Indices]] = []
        self.costs: Floats = np.zeros(1)
        self.losses: Floats = np.zeros(1)
        ranks_S: Indices = np.zeros(1, dtype=np.int64)
        for number in self._widths:
            losses_P, costs_P = _read_points(number, curves[number], tables[number])
            ranks_S = self._add_group(losses_P, costs_P, ranks_S, max_states)

    def find(self, capacity: float) -> int:
        """Return the index of the best choice that fits in the capacity, or -1 if none does."""
        return int(np.searchsorted(self.costs, capacity, side="right")) - 1

    def choose(self, capacity: float) -> dict[int, int]:
        """Return group index → kept units, with the lowest loss that fits in the capacity.

        Raises:
            ConfigError: No choice fits.
        """
        number = self.find(capacity)
        if number < 0:
            raise ConfigError(f"no choice fits in {capacity:.6g}: the cheapest costs {self.costs[0]:.6g}")
        return self.get_widths(number)

    def get_widths(self, choice: int) -> dict[int, int]:
        """Return group index → kept units of one of the choices."""
        kept = {}
        for number, (parents, points) in zip(reversed(self._widths), reversed(self._choices), strict=True):
            kept[number] = self._widths[number][points[choice]]
            choice = int(parents[choice])
        return dict(sorted(kept.items()))

    def _add_group(self, losses_P: Floats, costs_P: Floats, ranks_S: Indices, max_states: int) -> Indices:
        """Extend all states by all points of one more group, and return their ranks in lexicographic order."""
        costs = (self.costs[:, None] + costs_P).reshape(-1)
        losses = (self.losses[:, None] + losses_P).reshape(-1)
        ranks = (ranks_S[:, None] * len(costs_P) + np.arange(len(costs_P))).reshape(-1)
        order = _merge_similar(costs, losses, max_states)
        order = order[np.lexsort((ranks[order], losses[order], costs[order]))]
        best = np.minimum.accumulate(losses[order])
        order = order[np.r_[True, losses[order][1:] < best[:-1]]]
        self.costs, self.losses = costs[order], losses[order]
        self._choices.append((order // len(costs_P), order % len(costs_P)))
        return np.argsort(np.argsort(ranks[order]))


def _merge_similar(costs: Floats, losses: Floats, max_states: int) -> Indices:
    """Return which states remain: all, or the cheapest and the best one in each interval of costs."""
    if len(costs) <= max_states:
        return np.arange(len(costs))
    low, high = costs.min(), costs.max()
    intervals = np.ceil((costs - low) / max(high - low, np.finfo(float).tiny) * (max_states - 1)).astype(np.int64)
    least = np.full(max_states, np.inf)
    np.minimum.at(least, intervals, losses)
    return np.flatnonzero(losses == least[intervals])


def _read_points(number: int, curve: LossCurve, table: Sequence[float]) -> tuple[Floats, Floats]:
    losses_P, costs_P = np.array([loss for _, loss in curve], dtype=float), np.array([*table], dtype=float)
    if len(losses_P) != len(costs_P) or not len(losses_P):
        raise ConfigError(
            f"group {number}: its curve has {len(losses_P)} points and its table {len(costs_P)}; both need one entry "
            f"per width, and at least one"
        )
    if not np.isfinite(losses_P).all() or not np.isfinite(costs_P).all():
        raise ScoreError(f"group {number}: losses and costs must be finite, found {curve!r} and {table!r}")
    return losses_P, costs_P
