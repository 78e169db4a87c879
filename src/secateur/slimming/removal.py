"""Units that are removed from a model, and which indices of which parameters they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur._wording import format_list
from secateur.graph import Graph, Member, Role

__all__ = ["Flags", "Removal", "find_culprits"]

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """The removed units, over all groups of a graph.

    Attributes:
        graph: The graph.
        keep: For each group, one boolean per unit, ``True`` = kept.
    """

    graph: Graph
    keep: tuple[Flags, ...]

    @property
    def groups(self) -> list[int]:
        """The groups that lose units."""
        return [number for number, keep in enumerate(self.keep) if not keep.all()]

    def describe_groups(self) -> str:
        """Name the groups that lose units, for messages."""
        names = [repr(self.graph.groups[number].name) for number in self.groups]
        return f"{'group' if len(names) == 1 else 'groups'} {format_list(names)}"

    def restrict(self, groups: Collection[int]) -> Removal:
        """Return the removal of the units of some groups only."""
        keep = tuple(flags if number in groups else np.ones_like(flags) for number, flags in enumerate(self.keep))
        return Removal(graph=self.graph, keep=keep)

    def list_removed(self, roles: Collection[Role]) -> dict[tuple[str, int], Indices]:
        """Return the removed indices along each axis: (parameter, axis) → indices, sorted.

        Args:
            roles: The roles of the members to consider.
        """
        removed: dict[tuple[str, int], list[Indices]] = defaultdict(list)
        for member, indices in self._iterate():
            if member.role in roles:
                removed[member.parameter, member.axis].append(indices)
        return {key: np.unique(np.concatenate(parts)) for key, parts in removed.items()}

    def _iterate(self) -> Iterator[tuple[Member, Indices]]:
        for number in self.groups:
            for member in self.graph.groups[number].members:
                yield member, member.index_map.indices()[~self.keep[number]].reshape(-1)


def find_culprits(removal: Removal, fails: Callable[[Removal], bool]) -> Removal:
    """Bisect the groups of a removal that fails: find one that fails alone, or several that only fail together.

    Args:
        removal: A removal that fails.
        fails: Whether the removal of a part of its groups fails.
    """
    groups = removal.groups
    while len(groups) > 1:
        middle = len(groups) // 2
        halves = groups[:middle], groups[middle:]
        failing = next((half for half in halves if fails(removal.restrict(half))), None)
        if failing is None:
            break
        groups = failing
    return removal.restrict(groups)
