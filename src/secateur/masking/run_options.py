"""Settings of a run that the interfaces of other projects need, and that configurations do not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["RunObserver", "RunOptions"]


class RunObserver(Protocol):
    """Observes the steps of a run, for code that uses the interface of another project."""

    def before_step(self, step: int) -> None:
        """Called before step number `step` of the optimizer, when the gradients are ready."""

    def after_step(self, step: int) -> None:
        """Called after step number `step` of the optimizer, before pruned weights are set to zero."""

    def find_scores(self, step: int) -> Mapping[str, Any] | None:
        """Called when units are ranked after `step` steps.

        Returns:
            Layer → scores in the shape of its weight, or one per unit. Empty: the update is skipped. ``None``: the
            criterion of the configuration ranks.
        """

    def find_sparsity(self, step: int, initial: float, target: float) -> float | None:
        """Return the sparsity after an update at `step`, in [0, 1]; ``None``: the configured schedule applies.

        Args:
            step: Number of steps taken.
            initial: Sparsity before the first update.
            target: Sparsity that is not exceeded.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Settings of a run besides its configuration.

    Attributes:
        parts_until: Only for progressive runs. ``None``: the units of an update are pruned in parts before it, and are
            whole at the update. A step: they are pruned in parts from the update on, the first part at the update, and
            are whole at the last part, at the latest after the step that follows this one.
        learning_rate: Only for runs whose steps are announced. The learning rate of group lasso, ≥ 0, until a torch
            optimizer that trains the weights takes a step; its rate then applies. ``None``: group lasso is refused.
        steps_taken: Number of steps that count as taken before the run; updates that were due in these steps are
            skipped.
        is_resumed: Whether a saved state is loaded before the first step. The weights may then already be those of its
            checkpoint: until the state is loaded, nothing is pruned, and there are no warnings about zeros.
        observer: Observes the steps; not for compiled steps of Keras. Its own state is neither saved nor resumed.

    Examples:
        >>> RunOptions(parts_until=30).parts_until
        30
    """

    parts_until: int | None = None
    learning_rate: float | None = None
    steps_taken: int = 0
    is_resumed: bool = False
    observer: RunObserver | None = None
