"""Compute how many units to prune in each layer, within bounds and with an exact total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heapify, heapreplace

from secateur._wording import format_list
from secateur.errors import ConfigError
from secateur.patterns.rounding import KeepRule

__all__ = ["Budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Numbers of units to prune, computed from a target and bounds per layer.

    Attributes:
        units: Layer → number of units.
        unit_share: Share of the weights in a unit that are pruned with it: 1, or (M-N)/M for a group of N:M.
        target: Final sparsity.
        at_least: Minimum sparsity of each layer at the end.
        at_most: Maximum sparsity of each layer.
        is_global: Whether there is one total over all layers, rather than one for each layer.
        is_default: Whether `at_most` is the default rather than a setting of the user.
        rules: Layer → which numbers of units it can lose; numbers and bounds are rounded to these. Layers without a
            rule can lose any number.

    Raises:
        ConfigError: The bounds make the target impossible; the message names the layers and the reachable range.
    """

    units: Mapping[str, int]
    unit_share: Fraction
    target: float
    at_least: float
    at_most: float
    is_global: bool
    is_default: bool = False
    rules: Mapping[str, KeepRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.units:
            return
        if self.is_global:
            self._check_reachable(self.count_total(self.target), sum(self.units.values()), "over all layers")
        else:
            for name, units in self.units.items():
                self._check_reachable(self.count_for(units, self.target), units, f"in layer {name!r}", only=name)

    def count_for(self, units: int, sparsity: float) -> int:
        """Return how many of `units` units to prune for a sparsity, rounded."""
        share = self.unit_share
        return min(units, round(sparsity * (units * share.denominator) / share.numerator))

    def count_total(self, sparsity: float) -> int:
        """Return the number of units to prune over all layers."""
        return self.count_for(sum(self.units.values()), sparsity)

    def count_locally(self, name: str, sparsity: float) -> int:
        """Return the number of units to prune in a layer that is ranked separately."""
        count = min(self.count_for(self.units[name], sparsity), self._get_maximum(self.units[name]))
        if (rule := self.rules.get(name)) is None:
            return count
        upper = rule.round_down(self._get_maximum(self.units[name]))
        lower = rule.round_up(self._get_minimum(self.units[name])) if sparsity >= self.target else 0
        return min(max(rule.round_nearest(count), lower), upper)

    @property
    def tolerance(self) -> int:
        """By how many units a global ranking can miss its total, because layers lose only certain numbers of units."""
        return max((rule.step for rule in self.rules.values() if rule.step > 1), default=0)

    def lower_bounds(self, sparsity: float) -> dict[str, int]:
        """Return the minimum number of units to prune in each layer, which is proportional to the sparsity.

        While a schedule prunes more and more, enough units are always left to reach the final minimum of each layer.
        """
        final = self.count_total(self.target)
        count = min(self.count_total(sparsity), final)
        minima = {name: self._get_minimum(units) for name, units in self.units.items()}
        lower, upper = (
            _apportion(minima, -(-sum(minima.values()) * count // final) if final else 0),
            self.upper_bounds(),
        )
        return {
            name: min(self.rules[name].round_up(low), upper[name]) if name in self.rules else low
            for name, low in lower.items()
        }

    def upper_bounds(self) -> dict[str, int]:
        """Return the maximum number of units to prune in each layer."""
        upper = {name: self._get_maximum(units) for name, units in self.units.items()}
        return {name: self.rules[name].round_down(high) if name in self.rules else high for name, high in upper.items()}

    def find_ranges(self) -> dict[str, tuple[int, int]]:
        """Return the smallest and the largest number of units that each layer can lose at the target."""
        lower, upper = self.lower_bounds(self.target), self.upper_bounds()
        if not self.is_global:
            counts = {name: max(self.count_locally(name, self.target), lower[name]) for name in self.units}
            return {name: (count, count) for name, count in counts.items()}
        total, tolerance = min(self.count_total(self.target), sum(upper.values())), self.tolerance
        spare, missing = total - sum(lower.values()) + tolerance, total - sum(upper.values()) - tolerance
        return {name: (max(low, missing + upper[name]), min(upper[name], spare + low)) for name, low in lower.items()}

    def _get_minimum(self, units: int) -> int:
        exact = _to_fraction(self.at_least) * units / self.unit_share
        # Rounding up does not exceed a maximum that the user did not set.
        if self.is_default and math.floor(exact) <= self._get_maximum(units):
            return min(math.ceil(exact), self._get_maximum(units))
        return math.ceil(exact)

    def _get_maximum(self, units: int) -> int:
        return min(units, math.floor(_to_fraction(self.at_most) * units / self.unit_share))

    def _check_reachable(self, count: int, units: int, where: str, only: str | None = None) -> None:
        names = [only] if only is not None else list(self.units)
        low = sum(self._get_minimum(self.units[name]) for name in names)
        high = sum(self._get_maximum(self.units[name]) for name in names)
        if low <= count <= high:
            return
        bound, name = (self.at_most, "max") if count > high else (self.at_least, "min")
        reachable = f"{float(low * self.unit_share / units):.6g} to {float(high * self.unit_share / units):.6g}"
        default = " (the default of a global ranking)" if self.is_default and name == "max" else ""
        raise ConfigError(
            f"target_sparsity={self.target} is out of reach {where}: it means {count} of {units} units, but "
            f"with {name}_sparsity_ratio_per_op={bound}{default} for {format_list(map(repr, names))}, between {low} "
            f"and {high} units can be pruned, a sparsity of {reachable}. Change the target or the bound."
        )


def _apportion(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Return about proportional parts of counts with a sum of `total`, of which none shrinks when `total` grows.

    This is the method of Jefferson, which gives one more to the count with the largest quotient.

    Examples:
        >>> _apportion({"fc": 2, "conv": 7}, 3)
        {'fc': 0, 'conv': 3}
    """
    whole = sum(counts.values())
    parts = {name: count * total // whole if whole else 0 for name, count in counts.items()}
    quotients = [(-count / (parts[name] + 1), index, name) for index, (name, count) in enumerate(counts.items())]
    heapify(quotients)
    for _ in range(total - sum(parts.values())):
        _, index, name = quotients[0]
        parts[name] += 1
        heapreplace(quotients, (-counts[name] / (parts[name] + 1), index, name))
    return parts


def _to_fraction(ratio: float) -> Fraction:
    """Convert to the decimal number as written instead of its binary approximation: 0.29 of 100 units is 29."""
    return Fraction(repr(ratio))
