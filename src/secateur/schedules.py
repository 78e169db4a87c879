"""How sparse at which step.

A schedule maps ``(initial, target, progress)`` to a sparsity. ``initial`` and ``target`` are sparsities in [0, 1];
``progress`` is the share of the way from the start step to the end step, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur._registry import Registry

__all__ = ["SCHEDULES", "get_schedule", "register_schedule"]

Schedule = Callable[[float, float, float], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")

register_schedule = SCHEDULES.register
"""Decorator: ``@register_schedule("mine")`` above a function makes ``"mine"`` usable in configs."""


def get_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule registered under a name; a function is its own.

    Raises:
        UnknownNameError: No schedule has that name.
    """
    return schedule if callable(schedule) else SCHEDULES.find(schedule)


@register_schedule("one_shot")
def one_shot(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """The target at once.

    Example:
        >>> one_shot(0.0, 0.9, 0.0)
        0.9
    """
    return target


@register_schedule("linear")
def linear(initial: float, target: float, progress: float) -> float:
    """The same share of weights at each step.

    Example:
        >>> linear(0.0, 0.8, 0.25)
        0.2
    """
    return _between(initial, target, progress)


@register_schedule("cosine")
def cosine(initial: float, target: float, progress: float) -> float:
    """Slow, fast, slow: half a cosine wave.

    Example:
        >>> round(cosine(0.0, 0.8, 0.25), 4)
        0.1172
    """
    return _between(initial, target, (1.0 - math.cos(math.pi * progress)) / 2.0)


@register_schedule("exponential")
def exponential(initial: float, target: float, progress: float) -> float:
    """The same share of the *remaining* weights at each step: density falls geometrically.

    A target of 1 cannot be approached so; from any progress on, everything is pruned.

    Example:
        >>> round(exponential(0.0, 0.75, 0.5), 4)
        0.5
    """
    if progress == 1.0:
        return target
    density: float = (1.0 - initial) ** (1.0 - progress) * (1.0 - target) ** progress
    return 1.0 - density


@register_schedule("cubic")
def cubic(initial: float, target: float, progress: float) -> float:
    """Fast first, slow last.

    Source:
        Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1.

    Example:
        >>> round(cubic(0.0, 0.8, 0.5), 4)
        0.7
    """
    return target + (initial - target) * (1.0 - progress) ** 3


@register_schedule("cube")
def cube(initial: float, target: float, progress: float) -> float:
    """Slow first, fast last: the cubic schedule turned round.

    Example:
        >>> round(cube(0.0, 0.8, 0.5), 4)
        0.1
    """
    return _between(initial, target, progress**3)


def _between(initial: float, target: float, share: float) -> float:
    """Part of the way; exactly `target` at the end, to which adding a rounded difference need not lead."""
    return initial * (1.0 - share) + target * share
