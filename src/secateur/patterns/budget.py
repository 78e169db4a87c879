"""How many units each layer may lose, so that bounds hold and the total is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from secateur._wording import format_list
from secateur.errors import ConfigError

__all__ = ["Budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Unit counts that follow from a target and the bounds per layer.

    Attributes:
        units: Layer → its number of units.
        unit_share: Share of a unit's weights that go when it is pruned: 1, or (M-N)/M for a group of an N:M pattern.
        target: Sparsity to end with.
        at_least: Least sparsity of any layer at the end.
        at_most: Greatest sparsity of any layer.
        is_global: One total over all layers, or one per layer.

    Raises:
        ConfigError: The bounds make the target impossible; names the layers that bind and the reachable range.
    """

    units: Mapping[str, int]
    unit_share: Fraction
    target: float
    at_least: float
    at_most: float
    is_global: bool

    def __post_init__(self) -> None:
        if not self.units:
            return
        if self.is_global:
            self._check_reachable(self.count_total(self.target), sum(self.units.values()), "over all layers")
        else:
            for name, units in self.units.items():
                self._check_reachable(self.count_for(units, self.target), units, f"in layer {name!r}", only=name)

    def count_for(self, units: int, sparsity: float) -> int:
        """Units of so many that make up `sparsity`, rounded."""
        share = self.unit_share
        return min(units, round(sparsity * (units * share.denominator) / share.numerator))

    def count_total(self, sparsity: float) -> int:
        """Units to prune over all layers together."""
        return self.count_for(sum(self.units.values()), sparsity)

    def count_locally(self, name: str, sparsity: float) -> int:
        """Units to prune in one layer that is ranked by itself."""
        return min(self.count_for(self.units[name], sparsity), self._most(self.units[name]))

    def lower_bounds(self, sparsity: float) -> dict[str, int]:
        """Units that each layer loses at the least on the way to the target, in proportion to the way gone."""
        final = self.count_total(self.target)
        gone = min(self.count_total(sparsity), final)
        return {name: self._least(units) * gone // final if final else 0 for name, units in self.units.items()}

    def upper_bounds(self) -> dict[str, int]:
        """Units that each layer loses at the most."""
        return {name: self._most(units) for name, units in self.units.items()}

    def _least(self, units: int) -> int:
        return math.ceil(_exactly(self.at_least) * units / self.unit_share)

    def _most(self, units: int) -> int:
        return min(units, math.floor(_exactly(self.at_most) * units / self.unit_share))

    def _check_reachable(self, wanted: int, units: int, where: str, only: str | None = None) -> None:
        names = [only] if only is not None else list(self.units)
        low = sum(self._least(self.units[name]) for name in names)
        high = sum(self._most(self.units[name]) for name in names)
        if low <= wanted <= high:
            return
        bound, name = (self.at_most, "max") if wanted > high else (self.at_least, "min")
        reachable = f"{float(low * self.unit_share / units):.6g} to {float(high * self.unit_share / units):.6g}"
        raise ConfigError(
            f"target_sparsity={self.target} is out of reach {where}: it means {wanted} of {units} units, but "
            f"{name}_sparsity_ratio_per_op={bound} binds {format_list(map(repr, names))}: between {low} and {high} "
            f"units can go, a sparsity of {reachable}. Change the target or the bound."
        )


def _exactly(ratio: float) -> Fraction:
    """The decimal number that was written, not the binary one nearest to it: 0.29 of 100 units is 29."""
    return Fraction(repr(ratio))
