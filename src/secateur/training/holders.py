"""Who makes the steps that a parameter takes: optimizers, or a caller who announces them. Knows no framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Caller", "ParameterHome"]


class Caller:
    """Whoever announces the steps of a run that knows no optimizer; stands where that would stand.

    Args:
        parameters: What counts as trained.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters)}]


class ParameterHome:
    """The optimizers that hold a parameter; the first counts as its own.

    Args:
        held: The parameter.
    """

    def __init__(self, held: Any) -> None:
        self.held = held
        self.holders: list[Any] = []

    def add(self, optimizer: Any) -> None:
        """Note another optimizer, once."""
        if not any(holder is optimizer for holder in self.holders):
            self.holders.append(optimizer)

    @property
    def optimizer(self) -> Any:
        """Its own optimizer."""
        return self.holders[0]

    def learning_rate(self) -> Any:
        """The learning rate of the parameter's group, as it is now; ``None``: there is none."""
        # Looked up each time: optimizer.load_state_dict replaces the groups.
        groups = self.optimizer.param_groups
        return next((group.get("lr") for group in groups if any(held is self.held for held in group["params"])), None)
