"""Groups of layers that have their own settings in a search."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur._name_patterns import find_pattern
from secateur._wording import format_list
from secateur.errors import ConfigError, UnknownNameError
from secateur.searching.space import Choices, PruningSpace

__all__ = ["LayerGroup", "group_layers"]

BLOCK = re.compile(r"(?:.*?[./])??\d+(?=[./]|$)")
"""Matches the name of the block that a layer belongs to: everything up to the first number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that share a pattern and a sparsity.

    Attributes:
        name: Its name in the names of settings.
        expression: Regular expression that matches the names of its layers.
        layers: The names of its layers.
        pattern: The patterns to choose from; ``None``: that of the whole model.
        sparsity: The shares of units to choose from.
    """

    name: str
    expression: str
    layers: tuple[str, ...]
    pattern: tuple[str, ...] | None
    sparsity: Choices


def group_layers(space: PruningSpace, layers: Sequence[str]) -> tuple[LayerGroup, ...]:
    r"""Divide the layers into the groups of a space. Layers in no group have the settings of the space.

    Args:
        space: The space.
        layers: Names of the layers that a pattern of the space can prune.

    Raises:
        ConfigError: A name is not a regular expression.
        UnknownNameError: A name matches no layer.

    Examples:
        >>> space = PruningSpace.parse({"pattern": "1x1", "sparsity": 0.5, "groups": "block"})
        >>> groups = group_layers(space, ["layers.0.up", "layers.0.down", "layers.1.up"])
        >>> [(group.name, group.expression, len(group.layers)) for group in groups]
        [('layers.0', 'layers\\.0\\..*', 2), ('layers.1', 'layers\\.1\\..*', 1)]
    """
    if isinstance(space.groups, Mapping):
        return _group_by_expressions(space, space.groups, layers)
    if space.groups == "model":
        return ()
    by_name: dict[str, list[str]] = {}
    for layer in layers:
        block = BLOCK.match(layer) if space.groups == "block" else None
        by_name.setdefault(layer if block is None else block[0], []).append(layer)
    return tuple(
        LayerGroup(
            name=name,
            expression=_make_expression(name, members),
            layers=tuple(members),
            pattern=None,
            sparsity=space.sparsity,
        )
        for name, members in by_name.items()
    )


def _make_expression(name: str, layers: Sequence[str]) -> str:
    separator = layers[0][len(name) : len(name) + 1]
    return re.escape(name) + (f"{re.escape(separator)}.*" if separator else "")


def _group_by_expressions(
    space: PruningSpace, groups: Mapping[str, Mapping[str, Any]], layers: Sequence[str]
) -> tuple[LayerGroup, ...]:
    for expression in groups:
        try:
            re.compile(expression)
        except (TypeError, re.error) as error:
            raise ConfigError(f"space: groups: {expression!r} is not a regular expression: {error}.") from error
    members: dict[str, list[str]] = {expression: [] for expression in groups}
    for layer in layers:
        if (found := find_pattern(groups, layer)) is not None:
            members[found].append(layer)
    if empty := [expression for expression, names in members.items() if not names]:
        raise UnknownNameError(
            f"space: groups: {empty[0]!r} must match the whole name of a layer that can be pruned and that no group "
            f"before it contains, found none. Layers: {format_list(layers, limit=12)}."
        )
    return tuple(
        LayerGroup(
            name=expression,
            expression=expression,
            layers=tuple(members[expression]),
            pattern=settings.get("pattern"),
            sparsity=settings.get("sparsity", space.sparsity),
        )
        for expression, settings in groups.items()
    )
