"""The interface of cost models, which compute the cost of a model whose groups keep fewer units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from secateur.errors import ConfigError
from secateur.graph import Graph

__all__ = ["CostModel", "check_widths"]


class CostModel(ABC):
    """Computes the cost of a model with other widths. Widths are given as group index → kept units.

    A group that keeps none is removed together with its branch of the model; see `secateur.slimming.pytorch.depth`.

    Attributes:
        quantity: The quantity; a key of `secateur.slimming.budget.QUANTITIES`.
        graph: The dependencies between the model's parameters.
        dense: The cost of the dense model.
    """

    quantity: str
    graph: Graph
    dense: float

    @abstractmethod
    def estimate(self, kept: Mapping[int, int]) -> float:
        """Return the cost of the model with some widths, without building it. Other groups keep all units.

        Raises:
            ConfigError: A group cannot keep that many units.
        """

    @abstractmethod
    def measure(self, kept: Mapping[int, int]) -> float:
        """Return the measured cost of a model with some widths.

        Raises:
            ConfigError: A group cannot keep that many units.
        """

    def tabulate(self, group: int, widths: Sequence[int], base: Mapping[int, int] | None = None) -> list[float]:
        """Return the estimated cost of the model for several widths of one group.

        Args:
            group: Index of the group.
            widths: Numbers of kept units.
            base: The widths of other groups; those that are missing keep all units.
        """
        return [self.estimate({**(base or {}), group: width}) for width in widths]


def check_widths(graph: Graph, kept: Mapping[int, int]) -> None:
    """Check that groups exist and can keep some numbers of units.

    Raises:
        ConfigError: There is no such group, or it cannot keep that many units.
    """
    for number, count in kept.items():
        if not 0 <= number < len(graph.groups):
            raise ConfigError(f"there is no group {number}: the graph has {len(graph.groups)}")
        group = graph.groups[number]
        if not 0 <= count <= group.units:
            raise ConfigError(f"group {group.name!r} must keep 0 to {group.units} units, found {count}")
        if count < group.units and group.obstacle is not None:
            raise ConfigError(f"group {group.name!r} must keep all {group.units} units: {group.obstacle}")
