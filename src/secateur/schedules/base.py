"""The registry of schedules.

A schedule maps ``(initial, target, progress)`` to a sparsity. ``initial`` and ``target`` are sparsities in [0, 1];
``progress`` is the fraction of completed steps, from the start of the schedule to its end, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

from secateur._registry import Registry

__all__ = ["SCHEDULES", "Schedule", "get_schedule", "interpolate", "register_schedule"]

Schedule = Callable[[float, float, float], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")

register_schedule = SCHEDULES.register
"""Decorator: ``@register_schedule("mine")`` registers a function, so that configurations can use ``"mine"``."""


def get_schedule(schedule: str | Schedule) -> Schedule:
    """Return the schedule registered under a name; functions are returned unchanged.

    Raises:
        UnknownNameError: No schedule has that name.
    """
    return schedule if callable(schedule) else SCHEDULES.find(schedule)


def interpolate(initial: float, target: float, share: float) -> float:
    """Interpolate linearly between two sparsities; the result is exactly `target` at the end, without rounding error.

    Examples:
        >>> interpolate(0.0, 0.8, 0.25)
        0.2
    """
    return initial * (1.0 - share) + target * share
