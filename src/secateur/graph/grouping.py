"""Build groups from the facts that rules recorded: labels that are pruned together form a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.graph.graph import Graph, SizeUse
from secateur.graph.group import Group, Member, Role
from secateur.graph.index_map import AffineMap, ExplicitMap, IndexMap
from secateur.graph.labels import FIXED, Labels, find_axes
from secateur.graph.tracer import Axis, Tracer

__all__ = ["build_graph"]

Indices = npt.NDArray[np.int64]

SINGLE_UNIT = "all its indices depend on each other, so they form a single unit"
NO_CONSUMER = "no weight reads them, so no weights can be set to zero in their place"


def build_graph(tracer: Tracer, aliases: Mapping[str, tuple[str, ...]], *, separator: str = ".") -> Graph:
    """Build the groups from the facts of a tracer.

    Args:
        tracer: The tracer, after all rules ran.
        aliases: Name of a parameter → its other names.
        separator: Separates the parts of a parameter's name.
    """
    unit_of = _find_units(tracer)
    reasons = _collect_reasons(unit_of, tracer.pins)
    inexact = _collect_reasons(unit_of, tracer.inexact)
    heads = np.zeros(tracer.count, dtype=bool)
    for labels in tracer.heads:
        heads[unit_of[labels]] = True
    slices = _Slices(tracer.axes, unit_of)
    families: dict[Any, list[int]] = {}
    for unit, run in slices.list_runs():
        key = (slices.axes[run].tobytes(), reasons.numbers[unit], inexact.numbers[unit], heads[unit])
        families.setdefault(key, []).append(run.start)
    groups: list[Group] = []
    group_of, position_of = (np.full(tracer.count, FIXED, dtype=np.int64) for _ in range(2))
    for (signature, reason, leak, is_heads), starts in families.items():
        own = np.frombuffer(signature, dtype=slices.axes.dtype)
        if reason == leak == 0 and not any(tracer.axes[axis].roles for axis in own.tolist()):
            continue  # no operation depends on them, such as the positions of a kernel
        members = tuple(_make_members(tracer.axes, slices.take(starts, len(own)), own, aliases))
        units = slices.units[starts]
        group_of[units], position_of[units] = len(groups), np.arange(len(units))
        kind = "heads" if is_heads else "channels"
        obstacle = reasons.texts[reason] or _find_obstacle(members, len(units))
        groups.append(Group(units=len(units), members=members, kind=kind, reason=obstacle, inexact=inexact.texts[leak]))
    groups = _name_groups(groups, separator)
    return Graph(
        groups=tuple(groups),
        barriers=tuple(tracer.barriers),
        sizes=tuple(_find_sizes(tracer, unit_of, groups, (group_of, position_of))),
    )


class _Slices:
    """Which index of which axis belongs to which unit, sorted by unit, axis and index.

    Attributes:
        units: The unit of each entry.
        axes: Its axis.
        indices: Its index along the axis.
    """

    def __init__(self, axes: Sequence[Axis], unit_of: Indices) -> None:
        own = [(number, axis) for number, axis in enumerate(axes) if axis.parameter]
        empty = [np.empty(0, dtype=np.int64)]
        units = np.concatenate([unit_of[axis.first : axis.first + axis.size] for _, axis in own] or empty)
        numbers = np.repeat([number for number, _ in own], [axis.size for _, axis in own]).astype(np.int32)
        indices = np.concatenate([np.arange(axis.size, dtype=np.int64) for _, axis in own] or empty)
        order = np.lexsort((indices, numbers, units))
        self.units, self.axes, self.indices = units[order], numbers[order], indices[order]

    def list_runs(self) -> Iterator[tuple[int, slice]]:
        """Yield each unit with its entries."""
        starts = np.flatnonzero(np.diff(self.units, prepend=-1))
        ends = [*starts[1:].tolist(), len(self.units)]
        for unit, start, end in zip(self.units[starts].tolist(), starts.tolist(), ends, strict=True):
            yield unit, slice(start, end)

    def take(self, starts: Sequence[int], length: int) -> Indices:
        """Return the indices of units with the same number of entries, of shape (units, length)."""
        return self.indices[np.asarray(starts)[:, None] + np.arange(length)]


def _find_units(tracer: Tracer) -> Indices:
    """Return for each label the smallest label of its unit."""
    edges = list(tracer.edges)
    while True:
        unit_of = _find_components(tracer.count, edges)
        rectangles = () if tracer.keeps_sizes else tracer.rectangles
        added = [edge for labels in rectangles if (edge := _complete_rows(labels, unit_of)) is not None]
        if not added:
            return unit_of
        edges += added


def _find_components(count: int, edges: Sequence[tuple[Labels, Labels]]) -> Indices:
    """Return for each label the smallest label to which a path of edges leads."""
    smallest = np.arange(count, dtype=np.int64)
    if not edges:
        return smallest
    first = np.concatenate([edge[0] for edge in edges])
    second = np.concatenate([edge[1] for edge in edges])
    while True:
        low = np.minimum(smallest[first], smallest[second])
        before = smallest.copy()
        np.minimum.at(smallest, smallest[first], low)
        np.minimum.at(smallest, smallest[second], low)
        while not np.array_equal(smallest, shorter := smallest[smallest]):
            smallest = shorter
        if np.array_equal(before, smallest):
            return smallest


def _complete_rows(labels: Labels, unit_of: Indices) -> tuple[Labels, Labels] | None:
    """Unite labels so that they depend on one axis only; ``None`` if they already do.

    A pruned tensor must still be rectangular, so whole rows along one axis are removed. Inner axes are united first:
    heads rather than channels of heads.
    """
    units = unit_of[labels]
    axes = [axis for axis in find_axes(units) if (units != np.take(units, [0], axis=axis)).any()]
    if len(axes) < 2:
        return None
    first, second = np.broadcast_arrays(np.take(labels, [0], axis=axes[-1]), labels)
    return first.reshape(-1), second.reshape(-1)


class _Reasons(NamedTuple):
    """The first reason of each unit.

    Attributes:
        numbers: For each unit, the number of its reason; 0: none.
        texts: The reasons; the first is ``None``.
    """

    numbers: Indices
    texts: list[str | None]


def _collect_reasons(unit_of: Indices, facts: Sequence[tuple[Labels, str]]) -> _Reasons:
    texts: list[str | None] = [None, *dict.fromkeys(reason for _, reason in facts)]
    place = {text: number for number, text in enumerate(texts)}
    numbers = np.zeros(len(unit_of), dtype=np.int64)
    for labels, reason in reversed(facts):
        numbers[unit_of[labels]] = place[reason]
    return _Reasons(numbers, texts)


def _make_members(
    axes: Sequence[Axis], indices: Indices, own: npt.NDArray[np.int32], aliases: Mapping[str, tuple[str, ...]]
) -> Iterator[Member]:
    """Yield a member for each axis.

    Args:
        axes: All axes.
        indices: The indices of each unit along its axes, of shape (units, entries).
        own: The axis of each entry.
        aliases: Name of a parameter → its other names.
    """
    for number in dict.fromkeys(own.tolist()):
        axis = axes[number]
        yield Member(
            parameter=axis.parameter,
            shape=axis.shape,
            axis=axis.axis,
            index_map=_make_index_map(indices[:, own == number]),
            role=_choose_role(axis.roles),
            aliases=aliases.get(axis.parameter, ()),
        )


def _choose_role(roles: set[Role]) -> Role:
    """Return the role of an axis. If any operation sums over it, it is a consumer, which must be zero to be removed."""
    for role in (Role.CONSUMER, Role.PRODUCER):
        if role in roles:
            return role
    return Role.PER_CHANNEL


def _make_index_map(indices: Indices) -> IndexMap:
    units, width = indices.shape
    stride = int(indices[1, 0] - indices[0, 0]) if units > 1 else width
    affine = AffineMap(units=units, width=width, stride=stride, offset=int(indices[0, 0]))
    if np.array_equal(affine.indices(), indices):
        return affine if stride != width else AffineMap(units=units, width=width, offset=affine.offset)
    return ExplicitMap(tuple(map(tuple, indices.tolist())))


def _find_obstacle(members: Sequence[Member], units: int) -> str | None:
    if units == 1:
        return SINGLE_UNIT
    return None if any(member.role is Role.CONSUMER for member in members) else NO_CONSUMER


def _name_groups(groups: Sequence[Group], separator: str) -> list[Group]:
    """Name groups after the module that contains their members, or after the first layer that computes their units."""
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for number, group in sorted(enumerate(groups), key=lambda item: item[1].obstacle is not None):
        producers = [member for member in group.members if member.role is Role.PRODUCER] or list(group.members)
        name = producers[0].parameter.rpartition(separator)[0]
        if group.kind == "heads":
            name = _find_common_module([member.parameter for member in group.members], separator)
        name = name or producers[0].parameter.partition(separator)[0]
        taken[name] = taken.get(name, 0) + 1
        names[number] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return [replace(group, name=names[number]) for number, group in enumerate(groups)]


def _find_common_module(names: Sequence[str], separator: str) -> str:
    parts = [name.split(separator)[:-1] for name in names]
    common: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return separator.join(common)


def _find_sizes(
    tracer: Tracer, unit_of: Indices, groups: Sequence[Group], places: tuple[Indices, Indices]
) -> Iterator[SizeUse]:
    """Yield the numbers in code that depend on how many units of prunable groups remain.

    Args:
        tracer: The tracer.
        unit_of: The unit of each label.
        groups: The groups.
        places: The group of each unit, and its position in the group; `FIXED`: none.
    """
    for use in tracer.numbers:
        units = np.where(use.labels == FIXED, FIXED, unit_of[use.labels])
        along = np.moveaxis(units, use.axis, 0).reshape(units.shape[use.axis], -1)[:, 0]
        if (along == along[0]).all():
            continue
        of_group, positions = (np.where(along == FIXED, FIXED, place[along]) for place in places)
        if any(group != FIXED and groups[group].obstacle is None for group in np.unique(of_group).tolist()):
            yield SizeUse(module=use.call.module, operation=use.call.operation, groups=of_group, units=positions)
