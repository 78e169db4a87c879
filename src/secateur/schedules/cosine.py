"""The cosine schedule."""

from __future__ import annotations

import math

from secateur.schedules.base import interpolate, register_schedule

__all__ = ["cosine"]


@register_schedule("cosine")
def cosine(initial: float, target: float, progress: float) -> float:
    """Prune slowly, then fast, then slowly: half a cosine wave.

    Examples:
        >>> round(cosine(0.0, 0.8, 0.25), 4)
        0.1172
    """
    return interpolate(initial, target, (1.0 - math.cos(math.pi * progress)) / 2.0)
