"""Which sparsities of groups have the best quality at a size, predicted from the errors of earlier trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.planning.loss_curves import LossPoints, interpolate_powers, minimize_error
from secateur.searching.candidate import CandidateFactory
from secateur.searching.trial_result import TrialResult

__all__ = ["choose_sparsities"]

PRIOR = 0.3
"""How strongly equal factors of all groups are preferred, in trials."""

FACTORS = (0.2, 5.0)
"""Smallest and largest factor of a group."""

SLACK = 0.1
"""Difference in quality up to which trials are about as good as the best one, in medians of the differences."""


def choose_sparsities(
    factory: CandidateFactory,
    settings: Mapping[str, Any],
    ends: Sequence[TrialResult],
    trials: Sequence[TrialResult],
    sign: int,
) -> dict[str, float] | None:
    """Return the sparsities of groups that prune as much as the mean of two trials, with the smallest error in all.

    Errors of groups are multiplied by factors, with which their sum is in proportion to the loss in quality of trials:
    the same share of output energy matters more in some layers than in others.

    Args:
        factory: The space.
        settings: The values of all other settings.
        ends: The two trials.
        trials: All complete trials.
        sign: 1 if the objective is maximized, and -1 if it is minimized.

    Returns:
        Name of a setting → its value; ``None``: the errors are unknown.
    """
    axes = {axis.name: axis for axis in factory.iterate_axes(settings)}
    pattern = settings.get("pattern", factory.space.pattern[0])
    sizes = {
        name: sum(factory.sizes[layer] for layer in group.layers if layer in factory.layers[pattern])
        for group in factory.groups
        if (name := f"sparsity[{group.name}]") in axes
    }
    alike = [
        trial for trial in trials if trial.values.get("pattern", pattern) == pattern and trial.group_errors is not None
    ]
    if not sizes or len(alike) < 2:
        return None
    curves = {name: _list_errors(name, size, alike) for name, size in sizes.items()}
    factors = _fit_factors(list(sizes), alike, sign)
    weighted = {name: [(count, factors[name] * error) for count, error in curve] for name, curve in curves.items()}
    reach = sum(curve[-1][0] for curve in weighted.values())
    totals = [sum(size * end.values.get(name, 0.0) for name, size in sizes.items()) for end in ends]
    counts = minimize_error(weighted, min(round(sum(totals) / 2), reach))
    return {name: axes[name].find_nearest(count / sizes[name]) for name, count in counts.items()}


def _list_errors(name: str, size: int, trials: Sequence[TrialResult]) -> LossPoints:
    """Return the errors of a group of layers with a number of weights, by the number of pruned ones."""
    errors = {round(size * trial.values[name]): (trial.group_errors or {}).get(name, 0.0) for trial in trials}
    return interpolate_powers(sorted((count, error) for count, error in errors.items() if count))


def _fit_factors(names: Sequence[str], trials: Sequence[TrialResult], sign: int) -> dict[str, float]:
    """Return group → factor of its errors, by ridge regression of the relative loss in quality around equal factors."""
    errors = np.array([[(trial.group_errors or {}).get(name, 0.0) for name in names] for trial in trials])
    quality = np.array([sign * (trial.quality or 0.0) for trial in trials])
    lost = quality.max() - quality
    typical = float(np.median(lost)) or float(lost.max())
    if not typical:
        return dict.fromkeys(names, 1.0)
    shares = errors / (lost + SLACK * typical)[:, None]
    totals = shares.sum(axis=1)
    if not (power := float(totals @ totals)):
        return dict.fromkeys(names, 1.0)
    shares *= totals.sum() / power
    gram = shares.T @ shares + PRIOR * np.eye(len(names))
    factors = 1 + np.linalg.solve(gram, shares.T @ (1 - shares.sum(axis=1)))
    return dict(zip(names, np.clip(factors, *FACTORS).tolist(), strict=True))
