"""Schedules: the sparsity at each step of a run.

A schedule maps ``(initial, target, progress)`` to a sparsity. ``initial`` and ``target`` are sparsities in [0, 1];
``progress`` is the fraction of completed steps, from the start of the schedule to its end, in [0, 1].
"""

from secateur.schedules.base import SCHEDULES, Schedule, get_schedule, register_schedule
from secateur.schedules.cosine import cosine
from secateur.schedules.cubic import cube, cubic
from secateur.schedules.exponential import exponential
from secateur.schedules.linear import linear
from secateur.schedules.one_shot import one_shot

__all__ = [
    "SCHEDULES",
    "Schedule",
    "cosine",
    "cube",
    "cubic",
    "exponential",
    "get_schedule",
    "linear",
    "one_shot",
    "register_schedule",
]
