"""Patterns of weights whose output channels are distributed over processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from secateur.frameworks import WeightView
from secateur.patterns.base import BasePattern
from secateur.patterns.nm import NMTiling
from secateur.patterns.peers import Peers, RowPeers
from secateur.patterns.shared import can_share, share_tiling
from secateur.patterns.tiling import BlockTiling, Units
from secateur.patterns.transposable import TileTiling

__all__ = ["LayerPeers", "are_shared", "count_rows", "take_part", "take_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPeers:
    """The processes that a layer is divided over.

    Attributes:
        weights: For selections among all of its weights.
        units: For selections among its units, of which each process ranks its own.
        rows: If units have parts in several processes, so that each process ranks all units.
    """

    weights: Peers
    units: Peers | None = None
    rows: RowPeers | None = None


def count_rows(pattern: BasePattern, layer: str) -> int | None:
    """Return the number of consecutive output channels of a unit, if rows of units can be ranked by themselves.

    ``None`` if they cannot, because units span all output channels, have parts in several layers, are numbered in
    another order, or are selected by code of the pattern's own.

    Examples:
        >>> from secateur.patterns import get_pattern
        >>> view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
        >>> names = ("4x1", "1:2", "1:2-transposable", "channelx1")
        >>> patterns = [get_pattern(name, {"fc": view}, "array") for name in names]
        >>> [count_rows(pattern, "fc") for pattern in patterns]
        [4, 1, 2, None]
    """
    kind, view = type(pattern), pattern.views[layer]
    if kind.select is not BasePattern.select or kind.cut_globally is not BasePattern.cut_globally:
        return None
    entries = {name: units.parts for name, units in pattern.units.items() if layer in units.parts}
    if entries.keys() != {layer} or len(entries[layer]) != 1 or view.output_axes != (0,):
        return None
    tiling = entries[layer][layer]
    if isinstance(tiling, TileTiling):
        return tiling.size
    if isinstance(tiling, NMTiling):
        return None if tiling.is_outputs_last else 1
    if type(tiling) is not BlockTiling or tiling.is_outputs_last or tiling.grid[0] == 1:
        return None
    return tiling.block[0]


def are_shared(pattern: BasePattern, layer: str) -> bool:
    """Whether processes that hold some output channels each can score all units of a layer together.

    Examples:
        >>> from secateur.patterns import get_pattern
        >>> view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
        >>> configs = [{"pattern": name} for name in ("4x1", "channelx1")]
        >>> patterns = [get_pattern(config, {"fc": view}, "array") for config in configs]
        >>> [are_shared(pattern, "fc") for pattern in patterns]
        [False, True]
    """
    tilings = [units.parts[layer] for units in pattern.units.values() if layer in units.parts]
    is_selected_here = type(pattern).select is BasePattern.select
    return is_selected_here and pattern.views[layer].output_axes == (0,) and all(map(can_share, tilings))


def take_view(view: WeightView, rows: range) -> WeightView:
    """Return the view of some output channels of a weight that stores them first.

    Examples:
        >>> view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
        >>> take_view(view, range(2, 5)).canonical_shape
        (3, 1, 4)
    """
    return replace(view, shape=(len(rows), *view.shape[1:]), groups=1)


def take_part(pattern: BasePattern, views: Mapping[str, WeightView], peers: Mapping[str, LayerPeers]) -> BasePattern:
    """Return a pattern for a part of some layers, within the counts of the whole pattern.

    Args:
        pattern: The pattern of the whole weights.
        views: Layer → the view of the output channels in this process, for the layers of which it has a part.
        peers: The same layers → the processes that have the other parts.
    """
    part = copy.copy(pattern)
    part.views = {layer: views.get(layer, view) for layer, view in pattern.views.items()}
    part.weight_peers = {layer: known.weights for layer, known in peers.items()}
    part.units = {name: _take_units(pattern, units, views, peers) for name, units in pattern.units.items()}
    return part


def _take_units(
    pattern: BasePattern, units: Units, views: Mapping[str, WeightView], peers: Mapping[str, LayerPeers]
) -> Units:
    layer = next(iter(units.parts))
    if layer in peers and (ranking := peers[layer].units) is not None:
        return Units({layer: pattern.tile(views[layer])}, ranking)
    return Units(
        {
            layer: tiling
            if (known := peers.get(layer)) is None or known.rows is None
            else share_tiling(tiling, known.rows)
            for layer, tiling in units.parts.items()
        }
    )
