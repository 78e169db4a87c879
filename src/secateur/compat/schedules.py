"""Register schedules of other projects when a configuration needs them."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur._deprecated import serve_old_names
from secateur.schedules import SCHEDULES, get_schedule

__all__ = ["register_quarter_cosine", "register_with_start"]


def register_quarter_cosine() -> str:
    """Register ``"quarter_cosine"``, a schedule that starts slowly and ends fast, and return its name.

    Examples:
        >>> from secateur.schedules import get_schedule
        >>> round(get_schedule(register_quarter_cosine())(0.0, 0.8, 0.5), 4)
        0.2343
    """

    def schedule(initial: float, target: float, progress: float) -> float:
        if progress == 1.0:
            return target
        return initial + (target - initial) * (1.0 - math.cos(math.pi / 2 * progress))

    return _register("quarter_cosine", schedule)


def register_with_start(name: str, sparsity: float) -> str:
    """Register a schedule that jumps to `sparsity` at the start and then follows `name`, and return its name.

    Examples:
        >>> from secateur.schedules import get_schedule
        >>> get_schedule(register_with_start("linear", 0.5))(0.0, 0.8, 0.0)
        0.5
        >>> register_with_start("linear", 0.0)
        'linear'
    """
    if sparsity == 0:
        return name

    def schedule(initial: float, target: float, progress: float) -> float:
        return get_schedule(name)(max(initial, min(sparsity, target)), target, progress)

    return _register(f"{name}_from_{sparsity}", schedule)


def _register(name: str, schedule: Callable[[float, float, float], float]) -> str:
    if name not in SCHEDULES:
        SCHEDULES.register(name)(schedule)
    return name


__getattr__ = serve_old_names(
    __name__,
    {
        "quarter_cosine": "secateur.compat.schedules:register_quarter_cosine",
        "starting_at": "secateur.compat.schedules:register_with_start",
    },
)
