"""Settings of a run that the interfaces of other projects need, and that configurations do not have."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RunOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Settings of a run besides its configuration.

    Attributes:
        parts_until: Only for progressive runs. ``None``: the units of an update are pruned in parts before it, and are
            whole at the update. A step: they are pruned in parts from the update on, the first part at the update, and
            are whole at the last part, at the latest after the step that follows this one.
        learning_rate: Only for runs whose steps are announced. The learning rate of group lasso, ≥ 0, until a torch
            optimizer that trains the weights makes a step, whose rate then applies. ``None``: group lasso is refused.

    Examples:
        >>> RunOptions(parts_until=30)
        RunOptions(parts_until=30, learning_rate=None)
    """

    parts_until: int | None = None
    learning_rate: float | None = None
