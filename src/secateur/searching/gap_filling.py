"""New trials in the gaps of a Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.searching.candidate import CandidateFactory
from secateur.searching.error_model import choose_sparsities
from secateur.searching.trial_result import TrialResult, find_front

__all__ = ["GapFilling"]

METHODS = ("solver", "refine", "slim_solver")
"""Settings that change the quality of a model rather than its size."""

MIN_GAP = 0.02
"""Smallest difference in cost between two trials of the front that is worth a trial, relative to the larger cost."""

MIN_CHANGE = 0.002
"""Shares that differ less are equal."""


class GapFilling:
    """Chooses values for trials whose cost is probably between those of two neighbors on the front.

    Args:
        factory: The space.
        direction: Whether the objective is maximized or minimized.
    """

    def __init__(self, factory: CandidateFactory, direction: str) -> None:
        self._factory, self._direction = factory, direction
        self._sign = 1 if direction == "maximize" else -1

    def choose_values(self, results: Sequence[TrialResult], *, by_area: bool) -> dict[str, Any] | None:
        """Return new values for the largest gap of the front; ``None``: all gaps are small, or nothing new is left.

        A gap counts as smaller after each trial in it that has not reached the front, and the next one there tries
        something else: the smallest sum of errors, the middle of the two trials, or some values of each.

        Args:
            results: The results of all trials before.
            by_area: Whether gaps are compared by cost times quality, rather than by cost.
        """
        complete = [result for result in results if result.state == "complete" and result.repeats is None]
        gaps = []
        for small, large in pairwise(self._list_front(complete)):
            width, height = _read_cost(large) - _read_cost(small), abs(_read_quality(large) - _read_quality(small))
            if width >= MIN_GAP * _read_cost(large):
                tries = sum(_read_cost(small) < _read_cost(result) < _read_cost(large) for result in complete)
                gaps.append((width * (height if by_area else 1.0) / (1 + tries), tries, small, large))
        for _, tries, *ends in sorted(gaps, key=lambda gap: gap[0], reverse=True):
            for settings in self._list_settings(ends, complete):
                proposals = list(self._list_proposals(settings, ends, complete))
                start = tries % max(1, len(proposals))
                for values in proposals[start:] + proposals[:start]:
                    if not any(_are_alike(result.values, values) for result in results):
                        return values
        return None

    def _list_front(self, trials: Sequence[TrialResult]) -> list[TrialResult]:
        """Return the trials on the front, by ascending cost."""
        return sorted((trial for trial in find_front(trials, self._direction) if trial.is_on_front), key=_read_cost)

    def _list_settings(self, ends: Sequence[TrialResult], complete: Sequence[TrialResult]) -> list[dict[str, Any]]:
        """Return the settings to try in a gap: those with fewer trials in it first, then those that promise more.

        Methods are those of the larger model, which is the better one. Other choices, such as patterns, are those of
        the two trials, and those whose own front is above the smaller model's quality.
        """
        small, large = ends
        methods = {name: large.values[name] for name in METHODS if name in large.values}
        middle = (_read_cost(small) + _read_cost(large)) / 2
        kinds = [self._get_kind(result.values) for result in complete]
        ranked = []
        for index, kind in enumerate(kinds):
            if kind in kinds[:index]:
                continue
            own = [result for result, other in zip(complete, kinds, strict=True) if other == kind]
            front = self._list_front(own)
            qualities = [self._sign * _read_quality(result) for result in front]
            promise = float(np.interp(middle, list(map(_read_cost, front)), qualities))
            if promise > self._sign * _read_quality(small) or kind in map(self._get_kind, (small.values, large.values)):
                inside = sum(_read_cost(small) <= _read_cost(result) <= _read_cost(large) for result in own)
                nearest = min(own, key=lambda result: abs(_read_cost(result) - middle))
                ranked.append((inside, -promise, index, {**nearest.values, **methods}))
        return [settings for *_, settings in sorted(ranked, key=lambda entry: entry[:3])]

    def _get_kind(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that are neither numbers nor methods."""
        axes = self._factory.iterate_axes(values)
        return {axis.name: values[axis.name] for axis in axes if not axis.is_number and axis.name not in METHODS}

    def _list_proposals(
        self, settings: Mapping[str, Any], ends: Sequence[TrialResult], complete: Sequence[TrialResult]
    ) -> Iterator[dict[str, Any]]:
        """Yield values between those of two trials."""
        small, large = (end.values for end in ends)
        axes = [axis for axis in self._factory.iterate_axes(settings) if axis.is_number]
        both = [axis for axis in axes if axis.name in small and axis.name in large]
        middle = {axis.name: axis.find_nearest((small[axis.name] + large[axis.name]) / 2) for axis in both}
        different = [axis.name for axis in both if small[axis.name] != large[axis.name]]
        mixtures = [
            {name: (small if place % 2 == turn else large)[name] for place, name in enumerate(different)}
            for turn in range(2)
        ]
        for changes in (choose_sparsities(self._factory, settings, ends, complete, self._sign), middle, *mixtures):
            if changes is not None:
                values = {**settings, **changes}
                names = [axis.name for axis in self._factory.iterate_axes(values)]
                if all(name in values for name in names):
                    yield {name: values[name] for name in names}


def _read_cost(result: TrialResult) -> float:
    assert result.cost is not None
    return result.cost


def _read_quality(result: TrialResult) -> float:
    assert result.quality is not None
    return result.quality


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether values are equal, or differ by less than `MIN_CHANGE`."""
    return one.keys() == other.keys() and all(
        abs(value - one[name]) < MIN_CHANGE if isinstance(value, float) else value == one[name]
        for name, value in other.items()
    )
