"""Find the groups of units with slices in several layers, and describe them in a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from secateur._wording import format_list
from secateur.errors import ConfigError
from secateur.graph import Graph, Group, Member, Role, trace
from secateur.patterns import BasePattern
from secateur.patterns.coupled import GroupPattern
from secateur.planning.layers import format_range, shorten_name
from secateur.results import UnitGroupRecord

__all__ = ["GroupFinder", "PlannedGroup", "describe_groups"]

Finders = Mapping[str, Callable[[Any], Sequence[Group]]]
"""Kind of group → a function that finds the groups of that kind without example inputs."""


class GroupFinder:
    """Finds the groups of a model by their kind, and traces the model once, when it first needs to.

    Args:
        model: The model.
        example_inputs: Inputs of the model, or its `Graph`; ``None``: there are none.
        finders: How to find groups without them; ``None``: the model can be traced without them.
        supported: The parameters that patterns support; ``None``: all.
    """

    def __init__(
        self, model: Any, example_inputs: Any, finders: Finders | None, supported: Set[str] | None = None
    ) -> None:
        self._model = model
        self._inputs = example_inputs
        self._finders = finders
        self._supported = supported
        self._graph = example_inputs if isinstance(example_inputs, Graph) else None

    def find(self, kind: str) -> Sequence[Group]:
        """Return the groups of a kind, such as ``"channels"``.

        Raises:
            ConfigError: They can only be found with example inputs, and there are none.
            SecateurError: The model cannot be traced.
        """
        if self._graph is None and self._inputs is None and self._finders is not None:
            if kind in self._finders:
                return self._finders[kind](self._model)
            raise ConfigError(
                f"The pattern {kind!r} needs example inputs to find the weights that share {kind}. Pass "
                f"example_inputs=batch, one batch in the form that the model accepts: a tensor, a tuple of positional "
                f"arguments, or a mapping of named ones."
            )
        if self._graph is None:
            self._graph = trace(self._model, self._inputs)
        groups = [group for group in self._graph.groups if group.kind == kind]
        # All weights of a head must be pruned with it; those that compute a channel need not be.
        return list(map(self._leave_unsupported, groups)) if kind == "heads" else groups

    def _leave_unsupported(self, group: Group) -> Group:
        """Ignore parameters that compute units but that no pattern supports, such as a table of biases.

        Without the weights that read a pruned unit, they have no effect.
        """
        members = tuple(
            replace(member, role=Role.PER_CHANNEL)
            if member.role is Role.PRODUCER and not self._is_supported(member)
            else member
            for member in group.members
        )
        return group if members == group.members else replace(group, members=members)

    def _is_supported(self, member: Member) -> bool:
        return self._supported is None or not self._supported.isdisjoint((member.parameter, *member.aliases))

    @property
    def barriers(self) -> tuple[str, ...]:
        """The operations without a rule; none if the model was not traced."""
        return () if self._graph is None else tuple(map(str, self._graph.barriers))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGroup:
    """Units with slices in several layers, as a row of a plan.

    Attributes:
        name: Name of the units in the pattern, or of the group if it is not pruned.
        kind: ``"channels"`` or ``"heads"``.
        units: Number of units.
        unit_size: Weights that are pruned with each unit; 0 if the group is not pruned.
        members: The axes of parameters that contain the slices.
        target_sparsity: Target of the group, or of all groups that are ranked with it.
        sparsity_range: Minimum and maximum share of units that the group can lose.
        is_global: Whether it is ranked with other groups.
        reason: Why it is not pruned; ``None`` if it is.
    """

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    unit_size: int = 0
    target_sparsity: float = 0.0
    sparsity_range: tuple[float, float] = (0.0, 0.0)
    is_global: bool = False
    reason: str | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether the group is pruned."""
        return self.reason is None

    def record(self) -> UnitGroupRecord:
        """Return the record of the group."""
        return UnitGroupRecord(name=self.name, kind=self.kind, units=self.units, reason=self.reason or "")

    def describe_members(self) -> str:
        """Return which parameters compute the units, and which read them, as names relative to that of the group."""
        verbs = {Role.PRODUCER: "computed by", Role.CONSUMER: "read by"}
        parts = []
        for role, verb in verbs.items():
            found = [member.parameter for member in self.members if member.role is role]
            names = dict.fromkeys(shorten_name(name, self.name).removesuffix(".weight") for name in found)
            if names:
                parts.append(f"{verb} {format_list(names)}")
        return "; ".join(parts)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row in the plan's table."""
        if self.reason is not None:
            return self.name, f"group of {self.kind}", "", "dense", f"{self.units:,}", "", "", self.reason
        units, target = f"{self.units:,} × {self.unit_size}", f"{self.target_sparsity:.1%}"
        scope = "globally" if self.is_global else "locally"
        explanation = f"{scope}; {self.describe_members()}"
        kind = f"group of {self.kind}"
        return self.name, kind, "", self.kind, units, target, format_range(self.sparsity_range), explanation

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "units": self.units,
            "unit_size": self.unit_size,
            "target_sparsity": self.target_sparsity,
            "sparsity_range": list(self.sparsity_range),
            "members": [
                {"parameter": member.parameter, "axis": member.axis, "role": str(member.role)}
                for member in self.members
            ],
            "reason": self.reason,
        }


def describe_groups(patterns: Iterable[BasePattern]) -> tuple[PlannedGroup, ...]:
    """Return the groups of all patterns. A group that one pattern prunes is not listed as unusable for another."""
    coupled = [pattern for pattern in patterns if isinstance(pattern, GroupPattern)]
    pruned = {id(group): row for pattern in coupled for group, row in _describe_pruned(pattern)}
    rows = list(pruned.values())
    seen = set(pruned)
    for pattern in coupled:
        for group, reason in pattern.unusable:
            if id(group) not in seen:
                seen.add(id(group))
                rows.append(
                    PlannedGroup(
                        name=group.name or group.members[0].parameter,
                        kind=str(pattern.coupling),
                        units=group.units,
                        members=group.members,
                        reason=reason,
                    )
                )
    return tuple(rows)


def _describe_pruned(pattern: GroupPattern) -> Iterable[tuple[Group, PlannedGroup]]:
    ranges = pattern.budget.find_ranges()
    for name, group in pattern.group_by_name.items():
        low, high = ranges[name]
        yield (
            group,
            PlannedGroup(
                name=name,
                kind=str(pattern.coupling),
                units=group.units,
                members=group.members,
                unit_size=pattern.units[name].unit_size,
                target_sparsity=pattern.target_sparsity,
                sparsity_range=(low / group.units, high / group.units),
                is_global=pattern.is_global and low < high,
            ),
        )
