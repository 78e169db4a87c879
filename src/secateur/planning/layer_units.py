"""Describe the units of one layer for a plan: how many there are, and how sparse the layer can become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from secateur.patterns import BasePattern
from secateur.patterns.regrowth import distribute_sparsity
from secateur.patterns.slices import OUTPUTS, CrossTiling, SliceTiling
from secateur.patterns.tiling import Tiling

__all__ = ["LayerUnits", "describe_units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUnits:
    """The units that a layer has parts of.

    Attributes:
        names: The names of the units, as in `BasePattern.units`.
        sizes: For each of them, the number of units and the weights of this layer in each unit.
        weights: Number of weights that belong to a unit.
        sparsity_range: Minimum and maximum sparsity that the layer can have at the end.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    weights: int
    sparsity_range: tuple[float, float]

    @property
    def units(self) -> int:
        """Number of all units."""
        return sum(units for units, _ in self.sizes)

    @property
    def unit_size(self) -> int:
        """Weights of the layer in each unit; 0 if units differ in size."""
        sizes = {size for _, size in self.sizes}
        return sizes.pop() if len(sizes) == 1 else 0


def describe_units(pattern: BasePattern) -> dict[str, LayerUnits]:
    """Return valid layer → its units.

    Examples:
        >>> from secateur.patterns import WeightView, get_pattern
        >>> view = WeightView(shape=(8, 6), output_axes=(0,), input_axes=(1,))
        >>> config = {"pattern": "1xchannel", "target_sparsity": 0.5}
        >>> units = describe_units(get_pattern(config, {"fc": view}, "array"))["fc"]
        >>> units.sizes, units.weights, units.sparsity_range
        (((8, 6),), 48, (0.5, 0.5))
    """
    ranges = _find_ranges(pattern)
    share = {name: pattern.unit_share / units for name, units in pattern.budget.units.items()}
    described = {}
    for layer, parts in pattern.list_parts().items():
        tilings = list(parts.values())
        weights = math.prod(pattern.views[layer].shape) * _add_shares(tilings, [Fraction(1)] * len(tilings))
        low, high = (_add_shares(tilings, [ranges[name][end] * share[name] for name in parts]) for end in (0, 1))
        described[layer] = LayerUnits(
            names=tuple(parts),
            sizes=tuple((tiling.count, tiling.unit_size) for tiling in tilings),
            weights=int(weights),
            sparsity_range=(float(low), float(high)),
        )
    return described


def _find_ranges(pattern: BasePattern) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest number of units that each layer can lose."""
    if not pattern.config.has_regrowth:
        return pattern.budget.find_ranges()
    return {name: (count, count) for name, count in distribute_sparsity(pattern).items()}


def _add_shares(tilings: Sequence[Tiling], shares: Sequence[Fraction]) -> Fraction:
    """Return the share of the weights of a layer that belong to given shares of its units.

    Output channels of one tiling and input channels of another overlap; output channels, or input channels, do not.
    """
    whole = list(zip(shares, map(_find_shares, tilings), strict=True))
    outputs, inputs = (sum((share * owned[end] for share, owned in whole), Fraction(0)) for end in (0, 1))
    return 1 - (1 - outputs) * (1 - inputs)


def _find_shares(tiling: Tiling) -> tuple[Fraction, Fraction]:
    """Return the shares of the output channels and of the input channels that all units together own."""
    if isinstance(tiling, CrossTiling):
        return _find_shares(tiling.outputs)[0], _find_shares(tiling.inputs)[1]
    if not isinstance(tiling, SliceTiling):
        return Fraction(1), Fraction(0)  # the only tiling of its layer
    share = Fraction(tiling.indices.size, tiling.shape[tiling.axis])
    return (share, Fraction(0)) if tiling.axis == OUTPUTS else (Fraction(0), share)
