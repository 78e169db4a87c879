"""The first trials, which show a sampler where good candidates are.

If layers have their own sparsity, random candidates are rarely as good as those in which it is the same everywhere, and
there are too many combinations to find better ones by chance. A search therefore starts with the same sparsity in all
groups. With calibration data, these trials also measure the error of each group at each sparsity, so the next ones
minimize the sum of these errors, at several sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.planning.loss_curves import LossPoints, minimize_error
from secateur.searching.candidate import CandidateFactory
from secateur.searching.trial_result import TrialResult, find_front

__all__ = ["WarmStart"]

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Positions of the sparsities of the first trials within the space."""

MAX_LEVELS = 20
"""Maximum number of these trials; with more patterns, they take turns."""

METHODS = ("solver", "refine", "slim_solver")
"""Settings that change the quality of a model rather than its size."""

GUIDED = 16
"""Number of trials that minimize the sum of the errors."""


class WarmStart:
    """Chooses the values of the first trials.

    Args:
        sampler: Name of the sampler. A grid is nothing but first trials, in random order.
        factory: The space.
        seed: The seed of the search.
        direction: Whether the objective is maximized or minimized.
    """

    def __init__(self, sampler: str, factory: CandidateFactory, seed: int, direction: str) -> None:
        self._factory, self._direction = factory, direction
        self._points: list[dict[str, Any]] = []
        self._can_guide = False
        if sampler == "grid":
            points = factory.list_points()
            self._points = [points[index] for index in np.random.default_rng(seed).permutation(len(points))]
        elif sampler != "random" and factory.groups:
            self._points = _list_levels(factory)
            self._can_guide = all(group.pattern is None for group in factory.groups)

    @property
    def points(self) -> Sequence[dict[str, Any]]:
        """The values that do not depend on results."""
        return self._points

    def choose_values(self, number: int, results: Sequence[TrialResult]) -> dict[str, Any] | None:
        """Return the values of a trial; ``None``: the sampler chooses.

        Args:
            number: The number of the trial.
            results: The results of all trials before.
        """
        if number < len(self._points):
            return self._points[number]
        index = number - len(self._points)
        return self._fill_gap(results, by_area=index % 2 == 0) if self._can_guide and index < GUIDED else None

    def _fill_gap(self, results: Sequence[TrialResult], *, by_area: bool) -> dict[str, Any] | None:
        """Return new values in the middle of the largest gap of the front, with the smallest sum of errors.

        Methods are those of the larger model, which is the better one, and other settings those of the smaller one.

        Args:
            results: The results of all trials before.
            by_area: Whether gaps are compared by cost times quality, rather than by cost.
        """
        front = [result for result in find_front(results, self._direction) if result.is_on_front]
        points = sorted((result.cost or 0.0, result.quality or 0.0, index) for index, result in enumerate(front))
        gaps = [
            ((large[0] - small[0]) * (abs(large[1] - small[1]) if by_area else 1.0), small[2], large[2])
            for small, large in pairwise(points)
        ]
        for _, *ends in sorted(gaps, reverse=True):
            small, large = (front[end].values for end in ends)
            settings = {**small, **{name: large[name] for name in METHODS if name in large}}
            values = self._minimize_errors(settings, (small, large), results)
            if values is not None and all(result.values != values for result in results):
                return values
        return None

    def _minimize_errors(
        self, settings: Mapping[str, Any], ends: Sequence[Mapping[str, Any]], results: Sequence[TrialResult]
    ) -> dict[str, Any] | None:
        """Return values of a model whose size is between two others; all other settings are kept."""
        axes = {axis.name: axis for axis in self._factory.iterate_axes(settings)}
        pattern = settings.get("pattern", self._factory.space.pattern[0])
        sizes = {
            name: sum(self._factory.sizes[layer] for layer in group.layers if layer in self._factory.layers[pattern])
            for group in self._factory.groups
            if (name := f"sparsity[{group.name}]") in axes
        }
        alike = [result for result in results if result.values.get("pattern", pattern) == pattern]
        curves = {name: _list_errors(name, size, alike) for name, size in sizes.items()}
        if not curves or min(map(len, curves.values())) < 2:
            return None
        low, high = (sum(curve[end][0] for curve in curves.values()) for end in (0, -1))
        totals = [sum(size * values.get(name, 0.0) for name, size in sizes.items()) for values in ends]
        counts = minimize_error(curves, round(min(max(sum(totals) / 2, low), high)))
        return {**settings, **{name: axes[name].find_nearest(count / sizes[name]) for name, count in counts.items()}}


def _list_errors(name: str, size: int, results: Sequence[TrialResult]) -> LossPoints:
    """Return the errors of a group of layers with a number of weights, by the number of pruned ones."""
    errors = {
        round(size * result.values[name]): result.group_errors.get(name, 0.0)
        for result in results
        if result.group_errors is not None
    }
    return sorted(errors.items())


def _list_levels(factory: CandidateFactory) -> list[dict[str, Any]]:
    """Return values in which all groups have the same sparsity."""
    patterns = factory.space.pattern
    fits = len(patterns) * len(LEVELS) <= MAX_LEVELS
    levels = [
        factory.make_level(share, pattern, index)
        for index, share in enumerate(LEVELS)
        for pattern in (patterns if fits else [patterns[index % len(patterns)]])
    ]
    return [point for index, point in enumerate(levels) if point not in levels[:index]]
