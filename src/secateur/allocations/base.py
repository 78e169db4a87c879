"""The base class of allocations, their task and their registry."""

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
    """The layers that share a target, and access to their weights and input statistics.

    Units are counted as the pattern's budget counts them: blocks, or groups of N:M.

    Attributes:
        pattern: The pattern, bound to all layers that share one target.
        iterate_problems: Runs the dense model on the calibration data, part by part, and yields the name of each part
            and the problems of the pattern's layers in it. Their weights may be offloaded before the next part.
        load: Returns a context in which the weight of a layer is in the model.
    """

    pattern: BasePattern
    iterate_problems: Callable[[], Iterator[tuple[str, Sequence[Problem]]]]
    load: Callable[[str], AbstractContextManager[object]] = nullcontext

    @property
    def target(self) -> float:
        """Share of the weights to prune, in [0, 1]."""
        return self.pattern.target_sparsity

    @property
    def units(self) -> dict[str, int]:
        """Layer → number of its units."""
        return dict(self.pattern.budget.units)

    @property
    def lower(self) -> dict[str, int]:
        """Layer → minimum number of units to prune."""
        return self.pattern.budget.lower_bounds(self.target)

    @property
    def upper(self) -> dict[str, int]:
        """Layer → maximum number of units to prune."""
        return self.pattern.budget.upper_bounds()

    @property
    def total(self) -> int:
        """Number of units to prune in total, clipped to the layers' bounds, which are rounded per layer."""
        total = self.pattern.budget.count_total(self.target)
        return min(max(total, sum(self.lower.values())), sum(self.upper.values()))


class Allocation(ABC):
    """Distributes a target over layers.

    Attributes:
        needs: The input statistics it needs: nothing, the norm of each input feature, or their Gram matrix.
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]]

    def check(self, task: AllocationTask) -> None:  # noqa: B027 - most allocations fit every model
        """Raise an error if the allocation does not fit the layers."""

    @abstractmethod
    def counts(self, task: AllocationTask) -> dict[str, int]:
        """Return layer → units to prune, within `task.lower` and `task.upper` and `task.total` in total."""


ALLOCATIONS: Registry[type[Allocation]] = Registry("allocation")
"""Allocation name → allocation class."""

register_allocation = ALLOCATIONS.register
"""Class decorator: register an allocation class in `ALLOCATIONS` under a name. Raises if the name is taken."""


def allocate(allocation: Allocation, task: AllocationTask) -> dict[str, int]:
    """Return layer → units to prune: the allocation's counts, or the bounds if they leave no choice, as with full N:M.

    Raises:
        UnsupportedModelError: The pattern couples layers, so layers have no separate counts.
        ConfigError: The allocation does not fit the layers, or its counts lack layers, violate their bounds, or miss
            the total by more than one unit per layer, the largest difference that rounding each layer can cause.
    """
    if task.pattern.coupling is not None or task.units.keys() != task.pattern.views.keys():
        raise UnsupportedModelError(
            f"pattern {task.pattern.pattern!r} couples layers, and solvers prune each layer on its own. "
            f"Prune without calibration data: secateur.prune(model, config, example_inputs=batch)."
        )
    allocation.check(task)
    for bound in (task.lower, task.upper):
        if sum(bound.values()) == task.total:
            return bound
    counts = allocation.counts(task)
    subject = f"The allocation {type(allocation).__name__}"
    if counts.keys() != task.units.keys():
        raise ConfigError(
            f"{subject} must return a count for each of {format_list(map(repr, task.units))}, found "
            f"{format_list(map(repr, counts)) or 'none'}."
        )
    lower, upper = task.lower, task.upper
    for name, count in counts.items():
        if not lower[name] <= count <= upper[name]:
            raise ConfigError(
                f"{subject} must prune {lower[name]} to {upper[name]} of {task.units[name]} units of layer {name!r}, "
                f"found {count}."
            )
    if abs(sum(counts.values()) - task.total) > len(counts):
        raise ConfigError(f"{subject} must prune {task.total} units in total, found {sum(counts.values())}.")
    return counts
