"""Schedules that other projects had and that are registered when a configuration needs them."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur.schedules import SCHEDULES, get_schedule

__all__ = ["quarter_cosine", "starting_at"]


def quarter_cosine() -> str:
    """The name of a schedule that is slow first and fast last: a quarter of a cosine wave.

    Example:
        >>> from secateur.schedules import get_schedule
        >>> round(get_schedule(quarter_cosine())(0.0, 0.8, 0.5), 4)
        0.2343
    """

    def schedule(initial: float, target: float, progress: float) -> float:
        if progress == 1.0:
            return target
        return initial + (target - initial) * (1.0 - math.cos(math.pi / 2 * progress))

    return _registered("quarter_cosine", schedule)


def starting_at(name: str, sparsity: float) -> str:
    """The name of a schedule like that of `name`, which goes to `sparsity` at once and on from there.

    Example:
        >>> from secateur.schedules import get_schedule
        >>> get_schedule(starting_at("linear", 0.5))(0.0, 0.8, 0.0)
        0.5
        >>> starting_at("linear", 0.0)
        'linear'
    """
    if sparsity == 0:
        return name

    def schedule(initial: float, target: float, progress: float) -> float:
        return get_schedule(name)(max(initial, min(sparsity, target)), target, progress)

    return _registered(f"{name}_from_{sparsity}", schedule)


def _registered(name: str, schedule: Callable[[float, float, float], float]) -> str:
    if name not in SCHEDULES:
        SCHEDULES.register(name)(schedule)
    return name
