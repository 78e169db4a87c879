"""Groups of units with slices in several kernels, as plain values in the saved state of a pruning optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from secateur.errors import LayerError
from secateur.graph import Constraints, ExplicitMap, Group, Member, Role

__all__ = ["SavedGroup"]

Index = Annotated[int, Field(ge=0, lt=1 << 31)]


class _SavedMember(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    parameter: str
    axis: NonNegativeInt
    rows: tuple[tuple[Index, ...], ...]
    role: Role


class _SavedConstraints(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    multiple: PositiveInt
    divisor: PositiveInt
    equal_parts: PositiveInt
    minimum: PositiveInt


class SavedGroup(BaseModel):
    """A group of units, as plain values.

    Attributes:
        name: See `Group`.
        kind: See `Group`.
        units: See `Group`.
        constraints: See `Group`.
        members: Its members in pruned kernels, with their indices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    units: PositiveInt
    constraints: _SavedConstraints
    members: tuple[_SavedMember, ...]

    @classmethod
    def of(cls, group: Group, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """Describe a group that is pruned.

        Args:
            group: The group.
            shapes: Parameter → its shape, of the pruned kernels.
        """
        names = [
            next((name for name in (member.parameter, *member.aliases) if name in shapes), None)
            for member in group.members
        ]
        return cls(
            name=group.name,
            kind=group.kind,
            units=group.units,
            constraints=_SavedConstraints(
                multiple=group.constraints.multiple,
                divisor=group.constraints.divisor,
                equal_parts=group.constraints.equal_parts,
                minimum=group.constraints.minimum,
            ),
            members=tuple(
                _SavedMember(
                    parameter=name,
                    axis=member.axis,
                    rows=tuple(map(tuple, member.index_map.indices().tolist())),
                    role=member.role,
                )
                for member, name in zip(group.members, names, strict=True)
                if name is not None
            ),
        )

    def restore(self, shapes: Mapping[str, tuple[int, ...]]) -> Group:
        """Return the group.

        Args:
            shapes: Parameter → its shape, of the pruned kernels.

        Raises:
            ConfigError: The values contradict each other.
            LayerError: The values contradict each other, or a parameter is missing.
        """
        if missing := [member.parameter for member in self.members if member.parameter not in shapes]:
            raise LayerError(f"the units {self.name!r} have parts in {missing[0]!r}, which is not pruned")
        members = tuple(
            Member(
                parameter=member.parameter,
                shape=shapes[member.parameter],
                axis=member.axis,
                index_map=ExplicitMap(member.rows),
                role=member.role,
            )
            for member in self.members
        )
        constraints = Constraints(**self.constraints.model_dump())
        return Group(units=self.units, members=members, constraints=constraints, name=self.name, kind=self.kind)
