"""How much of each layer goes, and the registry of all ways to decide on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur._registry import Registry
from secateur.oneshot.pytorch.problem import Problem
from secateur.patterns import BasePattern

__all__ = ["ALLOCATIONS", "Allocation", "AllocationTask", "register_allocation"]


@dataclass(frozen=True, kw_only=True)
class AllocationTask:
    """What an allocation may look at.

    Attributes:
        pattern: The pattern, bound to all layers that share one target.
        survey: Runs the dense model over the calibration data, part by part; each time it yields the name of the part
            and the problems of the pattern's layers in it.
    """

    pattern: BasePattern
    survey: Callable[[], Iterator[tuple[str, Sequence[Problem]]]]


class Allocation(ABC):
    """Shares a target out over layers.

    Attributes:
        needs: What has to be known of the layers' inputs.
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]]

    @abstractmethod
    def counts(self, task: AllocationTask) -> dict[str, int]:
        """Layer → units that go, counted as the pattern's budget does, in all as many as the target says."""


ALLOCATIONS: Registry[type[Allocation]] = Registry("allocation")
"""Allocation name → allocation class."""

register_allocation = ALLOCATIONS.register
"""Class decorator: adds an allocation class to `ALLOCATIONS` under a name. A name taken twice raises."""
