"""Build groups from the facts that rules noted: labels that are pruned together are a unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.graph.graph import Graph, SizeUse
from secateur.graph.group import Group, Member, Role
from secateur.graph.index_map import AffineMap, ExplicitMap, IndexMap
from secateur.graph.labels import FIXED, Labels, find_axes
from secateur.graph.tracer import Axis, Tracer

__all__ = ["build_graph"]

Indices = npt.NDArray[np.int64]

SINGLE_UNIT = "all its indices depend on each other, so that they are one unit"
NO_CONSUMER = "no weight reads them, so that nothing can be set to zero in their place"


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
    heads = set(unit_of[np.concatenate(tracer.heads)].tolist()) if tracer.heads else set()
    slices = _collect_slices(tracer.axes, unit_of)
    families: dict[Any, list[int]] = {}
    for unit, owned in slices.items():
        signature = tuple((axis, len(indices)) for axis, indices in owned.items())
        key = (signature, reasons.get(unit), inexact.get(unit), unit in heads)
        families.setdefault(key, []).append(unit)
    groups: list[Group] = []
    positions: dict[int, tuple[int, int]] = {}
    for (signature, reason, leak, is_heads), units in families.items():
        if (reason, leak) == (None, None) and not any(tracer.axes[axis].roles for axis, _ in signature):
            continue  # no operation depends on them, such as the positions of a kernel
        members = tuple(_make_member(tracer.axes[axis], units, slices, axis, aliases) for axis, _ in signature)
        positions |= {unit: (len(groups), position) for position, unit in enumerate(units)}
        kind = "heads" if is_heads else "channels"
        obstacle = reason or _find_obstacle(members, len(units))
        groups.append(Group(units=len(units), members=members, kind=kind, reason=obstacle, inexact=leak))
    groups = _name_groups(groups, separator)
    return Graph(
        groups=tuple(groups),
        barriers=tuple(tracer.barriers),
        sizes=tuple(_find_sizes(tracer, unit_of, groups, positions)),
    )


def _find_units(tracer: Tracer) -> Indices:
    """Return for each label the smallest label of its unit."""
    edges = list(tracer.edges)
    while True:
        unit_of = _find_components(tracer.count, edges)
        added = [edge for labels in tracer.rectangles if (edge := _complete_rows(labels, unit_of)) is not None]
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
    """Unite labels so that they depend on one axis only; ``None`` if they do.

    What remains of a tensor after pruning has a shape, so that whole rows along one axis must go. Inner axes are
    united first: heads rather than channels of heads.
    """
    units = unit_of[labels]
    axes = [axis for axis in find_axes(units) if (units != np.take(units, [0], axis=axis)).any()]
    if len(axes) < 2:
        return None
    first, second = np.broadcast_arrays(np.take(labels, [0], axis=axes[-1]), labels)
    return first.reshape(-1), second.reshape(-1)


def _collect_reasons(unit_of: Indices, facts: Iterable[tuple[Labels, str]]) -> dict[int, str]:
    """Return unit → the first reason that a fact gives."""
    reasons: dict[int, str] = {}
    for labels, reason in facts:
        for unit in np.unique(unit_of[labels]).tolist():
            reasons.setdefault(unit, reason)
    return reasons


def _collect_slices(axes: Sequence[Axis], unit_of: Indices) -> dict[int, dict[int, Indices]]:
    """Return unit → number of each axis in which it has slices → the indices."""
    slices: dict[int, dict[int, Indices]] = {}
    for number, axis in enumerate(axes):
        if not axis.parameter:
            continue
        units = unit_of[axis.first : axis.first + axis.size]
        order = np.argsort(units, kind="stable")
        owners, starts = np.unique(units[order], return_index=True)
        ends = [*starts[1:].tolist(), axis.size]
        for unit, start, end in zip(owners.tolist(), starts.tolist(), ends, strict=True):
            slices.setdefault(unit, {})[number] = order[start:end]
    return slices


def _make_member(
    axis: Axis,
    units: Sequence[int],
    slices: Mapping[int, Mapping[int, Indices]],
    number: int,
    aliases: Mapping[str, tuple[str, ...]],
) -> Member:
    indices = np.stack([slices[unit][number] for unit in units])
    return Member(
        parameter=axis.parameter,
        shape=axis.shape,
        axis=axis.axis,
        index_map=_make_index_map(indices),
        role=_choose_role(axis.roles),
        aliases=aliases.get(axis.parameter, ()),
    )


def _choose_role(roles: set[Role]) -> Role:
    """Return the role of an axis: one that any operation sums over is a consumer, which must be zero to be removed."""
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
    tracer: Tracer, unit_of: Indices, groups: Sequence[Group], positions: Mapping[int, tuple[int, int]]
) -> Iterable[SizeUse]:
    """Yield the numbers in code that depend on how many units of prunable groups remain."""
    for use in tracer.numbers:
        units = np.where(use.labels == FIXED, FIXED, unit_of[use.labels])
        along = units.transpose([use.axis, *(axis for axis in range(units.ndim) if axis != use.axis)])
        along = along.reshape(len(along), -1)[:, 0]
        if (along == along[0]).all():
            continue
        found = [positions.get(unit, (FIXED, FIXED)) for unit in along.tolist()]
        if all(group == FIXED or groups[group].obstacle is not None for group, _ in found):
            continue
        yield SizeUse(
            module=use.call.module,
            operation=use.call.operation,
            groups=np.array([group for group, _ in found], dtype=np.int64),
            units=np.array([unit for _, unit in found], dtype=np.int64),
        )
