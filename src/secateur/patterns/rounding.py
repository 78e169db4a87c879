"""Round the number of pruned units so that each group keeps a number of units that its constraints allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secateur._array import concat_chunks, to_numpy
from secateur.patterns.selection import Scores

__all__ = ["KeepRule", "RankedUnits", "Ranking", "choose_counts"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """Which numbers of units a group can lose. It can always keep all of them.

    Attributes:
        units: Number of units.
        step: The number of kept units is a multiple of this.
        minimum: Minimum number of kept units.
        parts: Units are split into this many runs of equal length, and each run keeps the same number of units. `step`
            is a multiple of it.

    Examples:
        >>> rule = KeepRule(units=20, step=8)
        >>> [rule.round_nearest(count) for count in (1, 3, 8, 9, 20)]
        [0, 4, 4, 12, 12]
    """

    units: int
    step: int = 1
    minimum: int = 1
    parts: int = 1

    @property
    def maximum(self) -> int:
        """Maximum number of units to prune."""
        return max(0, self.units - -(-self.minimum // self.step) * self.step)

    def round_down(self, count: int) -> int:
        """Return the largest possible number of units to prune that is at most `count`."""
        count = min(count, self.maximum)
        return max(0, self.units - -(-(self.units - count) // self.step) * self.step)

    def round_up(self, count: int) -> int:
        """Return the smallest possible number of units to prune that is at least `count`, or else the maximum."""
        if count <= 0 or count >= self.maximum:
            return min(max(count, 0), self.maximum)
        return self.units - (self.units - count) // self.step * self.step

    def round_nearest(self, count: int) -> int:
        """Return the possible number of units to prune that is nearest to `count`. Ties go to the smaller number."""
        low, high = self.round_down(count), self.round_up(count)
        return low if count - low <= high - count else high


class Ranking(Protocol):
    """The units of a group in the order in which they are pruned."""

    @property
    def rule(self) -> KeepRule:
        """Which numbers of units the group can lose."""

    def score_block(self, start: int, stop: int) -> float:
        """Return the mean score of the units that are pruned if `stop` units are, but not if `start` are."""


class RankedUnits:
    """The units of a group in the order in which they are pruned.

    Args:
        scores: The stream of their scores, of shape (units,).
        rule: Which numbers of units the group can lose.

    Attributes:
        rule: See above.
        ranking: Scores of shape (units / parts, parts), sorted along the first axis; units that are already pruned are
            ``-inf``.
        pruned: Number of units that must be pruned because some are already, so that all parts lose the same number.

    Raises:
        ScoreError: A score is ``nan``.
    """

    def __init__(self, scores: Scores, rule: KeepRule) -> None:
        scores.refuse_nan()
        self.rule = rule
        self._values = to_numpy(concat_chunks([chunk for chunk, _ in scores.read()])).astype(np.float64)
        self._alive = np.ones(rule.units, dtype=bool) if scores.alive is None else to_numpy(scores.alive)
        self.ranking: Floats = np.sort(self._by_part(np.where(self._alive, self._values, -np.inf)), axis=1).T
        dead = (~self._by_part(self._alive)).sum(axis=1)
        self.pruned = int(dead.max()) * rule.parts

    def score_block(self, start: int, stop: int) -> float:
        """Return the mean score of the units that are pruned if `stop` units are, but not if `start` are."""
        parts = self.rule.parts
        return float(self.ranking[start // parts : stop // parts].mean())

    def select(self, count: int) -> npt.NDArray[np.bool_]:
        """Return one boolean per unit, ``False`` for the lowest `count`. On ties, the lower index is kept."""
        keep = np.zeros(self.rule.units, dtype=bool).reshape(self.rule.parts, -1)
        # Units that are already pruned are ranked below all others, including those with a score of -inf.
        order = np.lexsort((-self._by_part(self._values), ~self._by_part(self._alive)), axis=1)
        kept = (self.rule.units - count) // self.rule.parts
        np.put_along_axis(keep, order[:, :kept], values=True, axis=1)
        kept_units: npt.NDArray[np.bool_] = keep.reshape(-1) & self._alive
        return kept_units

    def _by_part(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values.reshape(self.rule.parts, -1)


def choose_counts(groups: Sequence[Ranking], total: int, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Choose how many units each group loses, so that the sum is near to `total`.

    From their lower bounds, groups lose the units up to their next possible number, the units with the lowest mean
    score first, as long as the sum does not exceed `total`. Then one group loses more if that is closer to `total`. So
    the sum differs from it by at most half of the smallest remaining step, unless all groups reach their upper bounds.

    Args:
        groups: The groups. On ties, later groups lose units first.
        total: Number of units to prune.
        bounds: For each group, the minimum and the maximum number of units to prune.

    Returns:
        For each group, the number of units to prune, within its bounds.
    """
    counts = [low for low, _ in bounds]
    left = total - sum(counts)

    def find_next(index: int) -> tuple[float, int, int, int] | None:
        """Return the mean score of the next units of a group, its order, its index, and the number of these units."""
        start, stop = counts[index], groups[index].rule.round_up(counts[index] + 1)
        if not start < stop <= bounds[index][1]:
            return None
        return groups[index].score_block(start, stop), -index, index, stop - start

    heap = [following for index in range(len(groups)) if (following := find_next(index)) is not None]
    heapify(heap)
    too_large = []
    while heap:
        score, order, index, size = heappop(heap)
        if size > left:
            too_large.append((size, score, order, index))
            continue
        counts[index] += size
        left -= size
        if (following := find_next(index)) is not None:
            heappush(heap, following)
    if too_large and (best := min(too_large))[0] - left < left:
        counts[best[-1]] += best[0]
    return counts
