"""The exponential schedule."""

from __future__ import annotations

from secateur.schedules.base import register_schedule

__all__ = ["exponential"]


@register_schedule("exponential")
def exponential(initial: float, target: float, progress: float) -> float:
    """Prune the same fraction of the *remaining* weights at each step, so that the density decreases geometrically.

    With a target of 1, everything is pruned in the first step.

    Examples:
        >>> round(exponential(0.0, 0.75, 0.5), 4)
        0.5
    """
    if progress == 1.0:
        return target
    density: float = (1.0 - initial) ** (1.0 - progress) * (1.0 - target) ** progress
    return 1.0 - density
