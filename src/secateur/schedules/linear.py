"""The linear schedule."""

from __future__ import annotations

from secateur.schedules.base import interpolate, register_schedule

__all__ = ["linear"]


@register_schedule("linear")
def linear(initial: float, target: float, progress: float) -> float:
    """Prune the same fraction of all weights at each step.

    Examples:
        >>> linear(0.0, 0.8, 0.25)
        0.2
    """
    return interpolate(initial, target, progress)
