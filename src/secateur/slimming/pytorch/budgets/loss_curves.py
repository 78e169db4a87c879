"""Loss curves of groups: the widths among which a budget chooses, and what each costs."""

from __future__ import annotations

import numpy as np

from secateur.patterns.rounding import KeepRule
from secateur.solvers.unit_problem import RemovalPath

__all__ = ["DEFAULT_POINTS", "sample_path"]

DEFAULT_POINTS = 20


def sample_path(path: RemovalPath, rule: KeepRule, points: int = DEFAULT_POINTS) -> list[tuple[int, float]]:
    """Return evenly spaced points of a path: numbers of kept units that a rule allows, each with its loss.

    Args:
        path: The order in which units are removed, and the losses.
        rule: Which numbers of units the group can lose.
        points: Maximum number of points, ≥ 2.

    Returns:
        Kept units in descending order, the first all and the last as few as the rule allows, with the loss.

    Examples:
        >>> import torch
        >>> path = RemovalPath(order=torch.arange(8), losses=torch.arange(9.0) ** 2)
        >>> sample_path(path, KeepRule(units=8, step=2))
        [(8, 0.0), (6, 4.0), (4, 16.0), (2, 36.0)]
        >>> sample_path(path, KeepRule(units=8), points=3)
        [(8, 0.0), (5, 9.0), (1, 49.0)]
    """
    allowed = sorted({rule.round_down(count) for count in range(rule.maximum + 1)})
    numbers = np.unique(np.linspace(0, len(allowed) - 1, min(points, len(allowed))).astype(int))
    removed = [allowed[number] for number in numbers]
    return [(rule.units - count, float(path.losses[count])) for count in removed]
