"""Graphs written by hand, so that tests of slimming do not depend on tracing."""

import numpy as np
from torch import nn

from secateur.graph import AffineMap, Constraints, Graph, Group, IndexMap, Member, Role, SizeUse

PRODUCER, CONSUMER, PER_CHANNEL = Role.PRODUCER, Role.CONSUMER, Role.PER_CHANNEL


class GraphBuilder:
    """Collects groups whose members are given as (parameter, axis, role) or (parameter, axis, role, index map)."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict(keep_vars=True).items()}
        self.groups: list[Group] = []
        self.sizes: list[SizeUse] = []

    def add(self, name: str, units: int, *members: tuple, **options: object) -> "GraphBuilder":
        built = tuple(self._make_member(units, *member) for member in members)
        self.groups.append(Group(units=units, members=built, name=name, **options))
        return self

    def use_size(self, module: str, operation: str, units: int, group: int = 0, repeat: int = 1) -> "GraphBuilder":
        """A number that counts `repeat` positions for each unit of a group."""
        positions = np.repeat(np.arange(units), repeat)
        use = SizeUse(module=module, operation=operation, groups=np.full(len(positions), group), units=positions)
        self.sizes.append(use)
        return self

    def build(self) -> Graph:
        return Graph(groups=tuple(self.groups), sizes=tuple(self.sizes))

    def _make_member(
        self, units: int, name: str, axis: int, role: Role, index_map: IndexMap | None = None, aliases: tuple = ()
    ) -> Member:
        shape = self.shapes[name]
        index_map = index_map or AffineMap(units=units, width=shape[axis] // units)
        return Member(parameter=name, shape=shape, axis=axis, role=role, index_map=index_map, aliases=aliases)


def hidden(model: nn.Module, first: str, second: str, units: int, *extra: tuple, **options: object) -> Graph:
    """One group: rows of a layer with a bias, columns of another, and more members."""
    members = [(f"{first}.weight", 0, PRODUCER), (f"{first}.bias", 0, PER_CHANNEL), (f"{second}.weight", 1, CONSUMER)]
    return GraphBuilder(model).add("hidden", units, *members, *extra, **options).build()


__all__ = ["CONSUMER", "PER_CHANNEL", "PRODUCER", "Constraints", "GraphBuilder", "hidden"]
