"""The cubic schedule and its mirror image."""

from __future__ import annotations

from secateur.schedules.base import interpolate, register_schedule

__all__ = ["cube", "cubic"]


@register_schedule("cubic")
def cubic(initial: float, target: float, progress: float) -> float:
    """Prune fast at first and slowly at the end.

    Source:
        Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1.

    Examples:
        >>> round(cubic(0.0, 0.8, 0.5), 4)
        0.7
    """
    return target + (initial - target) * (1.0 - progress) ** 3


@register_schedule("cube")
def cube(initial: float, target: float, progress: float) -> float:
    """Prune slowly at first and fast at the end: the cubic schedule reversed.

    Examples:
        >>> round(cube(0.0, 0.8, 0.5), 4)
        0.1
    """
    return interpolate(initial, target, progress**3)
