"""How much of each layer goes, and the registry of all ways to decide on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur._registry import Registry
from secateur._wording import format_list
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.patterns import BasePattern
from secateur.solvers.problem import Problem

__all__ = ["ALLOCATIONS", "Allocation", "AllocationTask", "allocate", "register_allocation"]


@dataclass(frozen=True, kw_only=True)
class AllocationTask:
    """What an allocation may look at.

    Units are counted as the pattern's budget does: blocks, or groups of N:M.

    Attributes:
        pattern: The pattern, bound to all layers that share one target.
        survey: Runs the dense model over the calibration data, part by part; each time it yields the name of the part
            and the problems of the pattern's layers in it, of which the weights are gone before the next part.
        reading: Layer → a context in which its weight is in the model after a survey.
    """

    pattern: BasePattern
    survey: Callable[[], Iterator[tuple[str, Sequence[Problem]]]]
    reading: Callable[[str], AbstractContextManager[object]] = nullcontext

    @property
    def target(self) -> float:
        """Share of the weights that go, in [0, 1]."""
        return self.pattern.target_sparsity

    @property
    def units(self) -> dict[str, int]:
        """Layer → units that it has."""
        return dict(self.pattern.budget.units)

    @property
    def lower(self) -> dict[str, int]:
        """Layer → units that it loses at the least."""
        return self.pattern.budget.lower(self.target)

    @property
    def upper(self) -> dict[str, int]:
        """Layer → units that it loses at the most."""
        return self.pattern.budget.upper()

    @property
    def total(self) -> int:
        """Units that go in all; bounds that end at the target may, rounded per layer, be in the way of the last few."""
        total = self.pattern.budget.total(self.target)
        return min(max(total, sum(self.lower.values())), sum(self.upper.values()))


class Allocation(ABC):
    """Shares a target out over layers.

    Attributes:
        needs: What has to be known of the layers' inputs.
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]]

    @abstractmethod
    def counts(self, task: AllocationTask) -> dict[str, int]:
        """Layer → units that go: within `task.lower` and `task.upper`, in all `task.total`."""


ALLOCATIONS: Registry[type[Allocation]] = Registry("allocation")
"""Allocation name → allocation class."""

register_allocation = ALLOCATIONS.register
"""Class decorator: adds an allocation class to `ALLOCATIONS` under a name. A name taken twice raises."""


def allocate(allocation: Allocation, task: AllocationTask) -> dict[str, int]:
    """What an allocation says, or the bounds themselves where they leave no choice, as under a complete N:M.

    Raises:
        UnsupportedModelError: The pattern couples layers, so that none has a count of its own.
        ConfigError: Its answer lacks layers, is outside of their bounds, or misses the total by more than a unit per
            layer, which is what rounding each by itself may do.
    """
    if task.units.keys() != task.pattern.views.keys():
        raise UnsupportedModelError(
            f"pattern {task.pattern.pattern!r} couples layers, and solvers decide layer by layer. "
            f"Prune it without a solver: secateur.prune(model, config)."
        )
    for only in (task.lower, task.upper):
        if sum(only.values()) == task.total:
            return only
    found = allocation.counts(task)
    who = f"The allocation {type(allocation).__name__}"
    if found.keys() != task.units.keys():
        raise ConfigError(
            f"{who} must give a count for each of {format_list(map(repr, task.units))}, found "
            f"{format_list(map(repr, found)) or 'none'}."
        )
    lower, upper = task.lower, task.upper
    for name, count in found.items():
        if not lower[name] <= count <= upper[name]:
            raise ConfigError(
                f"{who} must take {lower[name]} to {upper[name]} of {task.units[name]} units of layer {name!r}, found "
                f"{count}."
            )
    if abs(sum(found.values()) - task.total) > len(found):
        raise ConfigError(f"{who} must take {task.total} units in all, found {sum(found.values())}.")
    return found
