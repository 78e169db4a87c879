"""Distribute units over layers so that the sum of their losses is smallest, given what each layer loses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

__all__ = ["LossPoints", "clip_hull", "interpolate_powers", "minimize_error"]

MAX_STEPS = 64
"""Number of steps in which an interpolated curve goes from 0 to its last count."""

LossPoints = Sequence[tuple[int, float]]
"""Numbers of pruned units in ascending order, each with the loss."""


def minimize_error(curves: Mapping[str, LossPoints], total: int) -> dict[str, int]:
    """Return layer → units to prune, adding up to `total`, with the smallest sum of errors on the curves' lower hulls.

    The hulls are convex. On ties, the earlier layer is pruned first.

    Args:
        curves: Layer → its curve of at least one point.
        total: Total number of units, between the sums of the curves' first and last counts.

    Examples:
        >>> minimize_error({"a": [(0, 0.0), (4, 4.0)], "b": [(0, 0.0), (2, 1.0), (4, 8.0)]}, 5)
        {'a': 3, 'b': 2}
    """
    counts = {name: curve[0][0] for name, curve in curves.items()}
    segments = [(slope, name, units) for name, curve in curves.items() for slope, units in _list_segments(curve)]
    missing = total - sum(counts.values())
    for _, name, units in sorted(segments, key=lambda segment: segment[0]):
        taken = min(units, missing)
        counts[name] += taken
        missing -= taken
    return counts


def clip_hull(curve: LossPoints, low: int, high: int) -> list[tuple[int, float]]:
    """Return the lower convex hull of a curve between two numbers of units, which both become points of it.

    Args:
        curve: The curve.
        low: At least the curve's first count.
        high: At least `low`, and at most the curve's last count.

    Examples:
        >>> clip_hull([(0, 0.0), (2, 3.0), (4, 4.0)], 1, 4)
        [(1, 1.0), (4, 4.0)]
    """
    counts, losses = zip(*_find_lower_hull(curve), strict=True)
    inner = [count for count in counts if low < count < high]
    return [(count, float(np.interp(count, counts, losses))) for count in dict.fromkeys((low, *inner, high))]


def interpolate_powers(curve: LossPoints) -> list[tuple[int, float]]:
    """Interpolate measured losses by powers of the number of pruned units, from no loss for none.

    Losses typically grow with the second or third power of the sparsity. Lines between a few points would overestimate
    small losses, and layers would get measured sparsities only. Up to the first point, the power is that between the
    first two. Where losses do not grow, or there is one point only, lines are used.

    Args:
        curve: Points with at least one unit pruned; none: the layer cannot lose any.

    Examples:
        >>> interpolate_powers([(2, 4.0), (4, 16.0)])
        [(0, 0.0), (1, 1.0), (2, 4.0), (3, 9.0), (4, 16.0)]
    """
    smooth = [(0, 0.0)]
    for index, (right, high) in enumerate(curve):
        left, low = curve[index - 1] if index else (0, 0.0)
        power = _find_power(*curve[max(0, index - 1) : max(0, index - 1) + 2])
        step = max(1, curve[-1][0] // MAX_STEPS)
        for count in [*range(left + step, right, step), right]:
            line = low + (high - low) * (count - left) / (right - left)
            smooth.append((count, line if power is None else high * (count / right) ** power))
    return smooth


def _find_power(start: tuple[int, float], end: tuple[int, float] | None = None) -> float | None:
    """Return the power by which losses grow between two points, at least 1; ``None``: they do not grow like that."""
    if end is None or not 0 < start[1] < end[1]:
        return None
    power = math.log(end[1] / start[1]) / math.log(end[0] / start[0])
    return power if power >= 1 else None


def _list_segments(curve: LossPoints) -> Iterator[tuple[float, int]]:
    """Yield error per unit and number of units of each segment of a curve's lower convex hull, the flattest first."""
    for start, end in pairwise(_find_lower_hull(curve)):
        yield _compute_slope(start, end), end[0] - start[0]


def _find_lower_hull(curve: LossPoints) -> list[tuple[int, float]]:
    hull: list[tuple[int, float]] = []
    for point in curve:
        while len(hull) > 1 and _compute_slope(hull[-2], hull[-1]) >= _compute_slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _compute_slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
