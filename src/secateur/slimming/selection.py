"""Select the units to remove: those that nothing reads, within the constraints of their group."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from secateur._wording import format_list, suggest_name
from secateur.errors import LayerError, UnknownNameError
from secateur.graph import Graph, Group, Role
from secateur.slimming.removal import Removal
from secateur.slimming.report import SlimmedGroup

__all__ = [
    "check_members",
    "describe_groups",
    "equalize_widths",
    "exclude_groups",
    "explain_obstacle",
    "feeds_groups",
    "find_equal_groups",
    "select_kept",
    "select_removal",
]

Flags = npt.NDArray[np.bool_]

EXCLUDED = "it is excluded by name"


def check_members(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a graph belongs to a model.

    Args:
        graph: The graph.
        shapes: Name of each parameter and buffer of the model → its shape.

    Raises:
        LayerError: A member has no parameter in the model, or one of another shape.
    """
    for group in graph.groups:
        for member in group.members:
            shape = shapes.get(member.parameter)
            if shape != member.shape:
                found = "no such parameter" if shape is None else f"shape {shape}"
                raise LayerError(
                    f"group {group.name!r}: {member.parameter!r} must have shape {member.shape}, found {found}. Trace "
                    f"the graph of this model again."
                )


def exclude_groups(graph: Graph, names: Iterable[str]) -> Graph:
    """Exclude groups, which then keep all units.

    Args:
        graph: The dependencies.
        names: Names of groups, or their names in plans and pruning reports: ``"conv.channels"`` of the group ``conv``.

    Raises:
        UnknownNameError: There is no group with one of the names.
    """
    given = [names] if isinstance(names, str) else sorted({*names})
    known = {group.name: group.name for group in graph.groups}
    known = {f"{group.name}.{group.kind}": group.name for group in graph.groups} | known
    for name in given:
        if name not in known:
            found = format_list(repr(group.name) for group in graph.groups)
            raise UnknownNameError(
                f"exclude: there is no group {name!r}.{suggest_name(name, known.values())} Groups: {found}."
            )
    excluded = {known[name] for name in given}
    groups = (replace(group, reason=EXCLUDED) if group.name in excluded else group for group in graph.groups)
    return replace(graph, groups=tuple(groups))


def explain_obstacle(group: Group, *, allow_inexact: bool = False) -> str | None:
    """Return why no unit of a group can be removed, regardless of its weights; ``None``: units can be.

    Args:
        group: The group.
        allow_inexact: Whether removing units may change the outputs.
    """
    if group.obstacle is not None:
        return group.obstacle
    if group.inexact is not None and not allow_inexact:
        return f"removal is not exact: {group.inexact}"
    if not any(member.role is Role.CONSUMER for member in group.members):
        return "no parameter reads its units, so zeros do not show which of them are unused"
    return None


def select_kept(group: Group, is_zero: Flags, *, minimum: int = 0) -> Flags:
    """Select the units to keep: all that are not zero, and as few others as the constraints allow.

    Of the zero units, those with the lowest indices are kept.

    Args:
        group: The group.
        is_zero: Whether nothing reads a unit, of shape (units,).
        minimum: Minimum number of units to keep, in addition to the constraints.

    Returns:
        One boolean per unit, ``True`` = kept; at least one is.

    Examples:
        >>> from secateur.graph import AffineMap, Constraints, Member
        >>> member = Member(
        ...     parameter="w",
        ...     shape=(2, 6),
        ...     axis=1,
        ...     index_map=AffineMap(units=6),
        ...     role=Role.CONSUMER,
        ... )
        >>> group = Group(units=6, members=(member,), constraints=Constraints(multiple=2))
        >>> select_kept(group, np.array([True, True, False, False, False, True])).tolist()
        [True, False, True, True, True, False]
    """
    rules = group.constraints
    parts = is_zero.reshape(rules.equal_parts, -1)
    longest = int((~parts).sum(axis=1).max())
    needed = max(longest * rules.equal_parts, rules.minimum, minimum)
    kept = -(-needed // rules.step) * rules.step
    if kept >= group.units:
        return np.ones(group.units, dtype=bool)
    keep = ~parts
    for flags in keep:
        missing = kept // rules.equal_parts - int(flags.sum())
        flags[np.flatnonzero(~flags)[:missing]] = True
    return keep.reshape(-1)


def equalize_widths(groups: Sequence[Group], zeros: Sequence[Flags], keep: Sequence[Flags]) -> list[Flags]:
    """Keep zero units so that groups of the same kind keep the same number.

    Groups are of the same kind if they have the same number of units, and the same members except for the numbers in
    the names, such as those of layers.

    Args:
        groups: The groups.
        zeros: For each group, whether nothing reads a unit.
        keep: For each group, one boolean per unit, ``True`` = kept, as `select_kept` returns.

    Returns:
        The same for equal widths.
    """
    kinds = [_get_kind(group) for group in groups]
    widths: dict[object, int] = {}
    for kind, flags in zip(kinds, keep, strict=True):
        widths[kind] = max(widths.get(kind, 0), int(flags.sum()))
    return [
        flags if int(flags.sum()) == widths[kind] else select_kept(group, is_zero, minimum=widths[kind])
        for group, kind, is_zero, flags in zip(groups, kinds, zeros, keep, strict=True)
    ]


def feeds_groups(graph: Graph, number: int, others: Collection[int]) -> bool:
    """Whether layers that read the units of a group compute those of some other groups.

    Args:
        graph: The graph.
        number: Index of the group.
        others: Indices of the other groups.
    """
    readers = {member.parameter for member in graph.groups[number].members if member.role is Role.CONSUMER}
    return any(
        member.parameter in readers
        for other in others
        if other != number
        for member in graph.groups[other].members
        if member.role is Role.PRODUCER
    )


def find_equal_groups(groups: Sequence[Group], numbers: Collection[int]) -> set[int]:
    """Return the numbers of all groups of the same kind as some groups; see `equalize_widths`."""
    kinds = {_get_kind(groups[number]) for number in numbers}
    return {number for number, group in enumerate(groups) if _get_kind(group) in kinds}


def _get_kind(group: Group) -> object:
    members = tuple(
        (re.sub(r"\d+", "#", member.parameter), member.shape[member.axis], member.axis, member.role)
        for member in group.members
    )
    return group.kind, group.units, members


def select_removal(
    graph: Graph, zeros: Sequence[Flags], obstacles: Sequence[str | None], *, is_uniform: bool
) -> Removal:
    """Select the units to remove, over all groups without an obstacle.

    Args:
        graph: The graph.
        zeros: For each group, whether nothing reads a unit.
        obstacles: For each group, why no unit can be removed; ``None``: units can be.
        is_uniform: Whether groups of the same kind keep the same number of units.
    """
    keep = [
        select_kept(group, is_zero) if obstacle is None else np.ones(group.units, dtype=bool)
        for group, is_zero, obstacle in zip(graph.groups, zeros, obstacles, strict=True)
    ]
    return Removal(graph=graph, keep=tuple(equalize_widths(graph.groups, zeros, keep) if is_uniform else keep))


def describe_groups(
    removal: Removal,
    zeros: Sequence[Flags],
    obstacles: Sequence[str | None],
    reasons: Mapping[int, str] = MappingProxyType({}),
) -> Iterator[SlimmedGroup]:
    """Yield what happened to each group, for the report.

    Args:
        removal: The removed units.
        zeros: For each group, whether nothing reads a unit.
        obstacles: For each group, why no unit can be removed; ``None``: units can be.
        reasons: Why groups that nothing reads are not removed as a whole, by their indices.
    """
    for number, (group, keep) in enumerate(zip(removal.graph.groups, removal.keep, strict=True)):
        obstacle = obstacles[number] if keep.any() else None
        removed, zero = int((~keep).sum()), int((zeros[number] | ~keep).sum())
        limit = "the constraints of the group, or equal widths, require them"
        if number in reasons:
            limit = f"{limit}; {reasons[number]}"
        yield SlimmedGroup(
            name=group.name,
            kind=group.kind,
            units=group.units,
            zero_units=zero,
            removed_units=removed,
            reason=obstacle or (limit if removed < zero else ""),
        )
