"""The first trials, which show a sampler where good candidates are.

If layers have their own sparsity, random candidates are rarely as good as those in which it is the same everywhere, and
there are too many combinations to find better ones by chance. A search therefore starts with the same sparsity in all
groups. Then it fills the gaps of the front. With calibration data, these trials also measure the error of each group at
each sparsity, so the next ones minimize the sum of these errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.searching.candidate import CandidateFactory
from secateur.searching.gap_filling import GapFilling
from secateur.searching.trial_result import TrialResult

__all__ = ["WarmStart"]

LEVELS = (0.0, 0.5, 0.75, 1.0)
"""Positions of the sparsities of the first trials within the space."""

MAX_LEVELS = 20
"""Maximum number of these trials; with more patterns, they take turns."""

GUIDED = 32
"""Number of trials that fill gaps before the sampler chooses every other trial."""


class WarmStart:
    """Chooses the values of the first trials.

    Args:
        sampler: Name of the sampler. A grid is nothing but first trials, in random order.
        factory: The space.
        seed: The seed of the search.
        direction: Whether the objective is maximized or minimized.
    """

    def __init__(self, sampler: str, factory: CandidateFactory, seed: int, direction: str) -> None:
        self._gaps = GapFilling(factory, direction)
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
        if not self._can_guide or (index >= GUIDED and index % 2):
            return None
        turn = index if index < GUIDED else index // 2
        return self._gaps.choose_values(results, by_area=turn % 2 == 0)


def _list_levels(factory: CandidateFactory) -> list[dict[str, Any]]:
    """Return values in which all groups have the same sparsity."""
    patterns = factory.space.pattern
    fits = len(patterns) * len(LEVELS) <= MAX_LEVELS
    levels = [
        factory.make_level(share, pattern, index)
        for index, share in enumerate(LEVELS)
        for pattern in (patterns if fits else [patterns[index % len(patterns)]])
    ]
    levels = [point for index, point in enumerate(levels) if index == 0 or not _is_dense(point)]
    return [point for index, point in enumerate(levels) if point not in levels[:index]]


def _is_dense(values: Mapping[str, Any]) -> bool:
    """Whether values prune nothing, whatever the pattern is."""
    sparsities = [value for name, value in values.items() if name.startswith("sparsity")]
    has_own_patterns = any(name.startswith("pattern[") for name in values)
    return bool(sparsities) and not any(sparsities) and values.get("width", 1.0) == 1.0 and not has_own_patterns
