"""The one-shot schedule."""

from __future__ import annotations

from secateur.schedules.base import register_schedule

__all__ = ["one_shot"]


@register_schedule("one_shot")
def one_shot(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """Reach the target in the first step.

    Examples:
        >>> one_shot(0.0, 0.9, 0.0)
        0.9
    """
    return target
