"""The dependency graph of a model: its groups, what prevents their pruning, and the sizes in its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.graph.group import Group

__all__ = ["Barrier", "Graph", "SizeUse"]

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """An operation that no rule describes. Units that reach it are never pruned.

    Attributes:
        operation: The operation, such as ``"aten.roll"``.
        module: Name of the module whose code calls it; empty for the model itself.
        reason: Why it is a barrier, such as ``"has no rule"``.
    """

    operation: str
    module: str
    reason: str

    def __str__(self) -> str:
        place = f"in {self.module!r}" if self.module else "in the model's own code"
        return f"{self.operation} {place} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeUse:
    """A number in the code of a module that must change with the number of kept units, such as a number of heads.

    Attributes:
        module: Name of the module whose code contains the number.
        operation: The operation that the number is passed to, such as ``"aten.view"``.
        groups: Which of the graph's groups each position of the axis belongs to, of shape (size,); -1: to none.
        units: The unit of each position, of shape (size,); -1: none.
    """

    module: str
    operation: str
    groups: Indices
    units: Indices

    @property
    def size(self) -> int:
        """The current number."""
        return len(self.units)

    def count_kept(self, keep: Sequence[Flags]) -> int:
        """Return the number after pruning.

        Args:
            keep: For each group of the graph, one boolean per unit, ``True`` = kept.

        Examples:
            >>> use = SizeUse(
            ...     module="attention",
            ...     operation="aten.view",
            ...     groups=np.array([0, 0, 0]),
            ...     units=np.array([0, 1, 2]),
            ... )
            >>> use.count_kept([np.array([True, False, True])])
            2
        """
        pairs = zip(self.groups.tolist(), self.units.tolist(), strict=True)
        return sum(bool(group < 0 or keep[group][unit]) for group, unit in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The dependencies between the parameters of a model.

    Attributes:
        groups: All groups of units, in the order of the model's parameters; including those that must not be pruned,
            with the reason.
        barriers: Operations without a rule.
        sizes: Numbers in the code of modules that change when units are removed.
    """

    groups: tuple[Group, ...]
    barriers: tuple[Barrier, ...] = ()
    sizes: tuple[SizeUse, ...] = ()
