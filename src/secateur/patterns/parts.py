"""Patterns of weights whose output channels are distributed over processes, each of which ranks its own units."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from secateur.frameworks import WeightView
from secateur.patterns.base import BasePattern
from secateur.patterns.nm import NMTiling
from secateur.patterns.peers import Peers
from secateur.patterns.tiling import BlockTiling, Units

__all__ = ["count_rows", "take_part", "take_view"]


def count_rows(pattern: BasePattern, layer: str) -> int | None:
    """Return the number of consecutive output channels of a unit, if rows of units can be ranked by themselves.

    ``None`` if they cannot, because units span all output channels, have parts in several layers, are numbered in
    another order, or are selected by code of the pattern's own.

    Examples:
        >>> from secateur.patterns import get_pattern
        >>> view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
        >>> configs = [{"pattern": name} for name in ("4x1", "2:4", "channelx1")]
        >>> patterns = [get_pattern(config, {"fc": view}, "array") for config in configs]
        >>> [count_rows(pattern, "fc") for pattern in patterns]
        [4, 1, None]
    """
    kind, view = type(pattern), pattern.views[layer]
    if kind.select is not BasePattern.select or kind.cut_globally is not BasePattern.cut_globally:
        return None
    entries = {name: units.parts for name, units in pattern.units.items() if layer in units.parts}
    if entries.keys() != {layer} or len(entries[layer]) != 1 or view.output_axes != (0,):
        return None
    tiling = entries[layer][layer]
    if isinstance(tiling, NMTiling):
        return None if tiling.is_outputs_last else 1
    if type(tiling) is not BlockTiling or tiling.is_outputs_last or tiling.grid[0] == 1:
        return None
    return tiling.block[0]


def take_view(view: WeightView, rows: range) -> WeightView:
    """Return the view of some output channels of a weight that stores them first.

    Examples:
        >>> view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
        >>> take_view(view, range(2, 5)).canonical_shape
        (3, 1, 4)
    """
    return replace(view, shape=(len(rows), *view.shape[1:]), groups=1)


def take_part(pattern: BasePattern, views: Mapping[str, WeightView], peers: Mapping[str, Peers]) -> BasePattern:
    """Return a pattern that ranks a part of the units of some layers, within the counts of the whole pattern.

    Args:
        pattern: The pattern of the whole weights.
        views: Layer → the view of the output channels in this process, for the layers of which it ranks a part.
        peers: The same layers → the processes that rank the units.
    """
    part = copy.copy(pattern)
    part.views = {layer: views.get(layer, view) for layer, view in pattern.views.items()}
    part.units = {}
    for name, units in pattern.units.items():
        layer = next(iter(units.parts))
        is_part = len(units.parts) == 1 and layer in views
        part.units[name] = Units({layer: pattern.tile(views[layer])}, peers[layer]) if is_part else units
    return part
