"""The registry of schedules.

A schedule maps ``(initial, target, progress)`` to a sparsity. ``initial`` and ``target`` are sparsities in [0, 1];
``progress`` is the share of the steps from the start to the end that are done, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

from secateur._registry import Registry

__all__ = ["SCHEDULES", "Schedule", "get_schedule", "interpolate", "register_schedule"]

Schedule = Callable[[float, float, float], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")

register_schedule = SCHEDULES.register
"""Decorator: ``@register_schedule("mine")`` above a function makes ``"mine"`` usable in configs."""


def get_schedule(schedule: str | Schedule) -> Schedule:
    """Return the schedule registered under a name, or a function as it is.

    Raises:
        UnknownNameError: No schedule has that name.
    """
    return schedule if callable(schedule) else SCHEDULES.find(schedule)


def interpolate(initial: float, target: float, share: float) -> float:
    """Return the sparsity after a share of the way; exactly `target` at the end, free of rounding.

    Example:
        >>> interpolate(0.0, 0.8, 0.25)
        0.2
    """
    return initial * (1.0 - share) + target * share
