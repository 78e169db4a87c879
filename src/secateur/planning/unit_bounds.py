"""How many units of each layer, and of all together, may be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.patterns import BasePattern

__all__ = ["UnitBounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitBounds:
    """How many units may be pruned.

    Attributes:
        lower: Layer → minimum number of units to prune.
        upper: Layer → maximum number of units to prune.
        total: Number of units to prune in total.
    """

    lower: Mapping[str, int]
    upper: Mapping[str, int]
    total: int

    @classmethod
    def read(cls, pattern: BasePattern) -> UnitBounds:
        """Return the bounds of a pattern at its target; the total is clipped to those of the layers."""
        lower, upper = pattern.budget.lower_bounds(pattern.target_sparsity), pattern.budget.upper_bounds()
        total = pattern.budget.count_total(pattern.target_sparsity)
        return cls(lower=lower, upper=upper, total=min(max(total, sum(lower.values())), sum(upper.values())))
