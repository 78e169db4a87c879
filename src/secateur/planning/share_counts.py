"""Distribute units over layers like a run that has pruned other numbers of them."""

from __future__ import annotations

from fractions import Fraction

from secateur.patterns import BasePattern
from secateur.planning.known_layers import KnownLayers
from secateur.planning.unit_bounds import UnitBounds
from secateur.results import LayerRecord, LayerShares

__all__ = ["count_by_shares", "list_shared_layers"]


def list_shared_layers(shares: LayerShares) -> KnownLayers:
    """Return the layers that were pruned, to compare a model with."""
    return KnownLayers(
        subject=f"{shares.origin}, passed as allocation,",
        verb="pruned",
        advice="Search for this model, with the same patterns and layers, or leave out allocation.",
        layers={layer.name: layer for layer in shares.layers},
        patterns={layer.name: (str(layer.pattern),) for layer in shares.layers},
    )


def count_by_shares(shares: LayerShares, pattern: BasePattern, bounds: UnitBounds) -> dict[str, int]:
    """Return layer → units to prune, `bounds.total` in all.

    If the total is that of the run, so is each count. If it is smaller, what layers lose is multiplied by a common
    factor; if it is larger, what they keep is. Both are relative to the bounds of the layers.
    """
    by_name = {layer.name: layer for layer in shares.layers}
    counts = {
        name: min(max(_count_units(by_name[name], pattern), bounds.lower[name]), bounds.upper[name])
        for name in pattern.budget.units
    }
    start, end = (counts, bounds.upper) if bounds.total > sum(counts.values()) else (bounds.lower, counts)
    missing, room = bounds.total - sum(start.values()), sum(end.values()) - sum(start.values())
    step = Fraction(missing, room) if room else Fraction(0)
    return _round_counts({name: start[name] + (end[name] - start[name]) * step for name in counts}, bounds.total)


def _count_units(layer: LayerRecord, pattern: BasePattern) -> int:
    """Return the number of units of a layer that were pruned, as the budget of a pattern counts them."""
    assert layer.units is not None
    assert layer.pruned_units is not None
    budget = pattern.budget
    return round(Fraction(layer.pruned_units, layer.units) * budget.units[layer.name] / budget.unit_share)


def _round_counts(exact: dict[str, Fraction], total: int) -> dict[str, int]:
    """Round numbers to integers with a sum; the largest remainders are rounded up, and of equal ones the first."""
    counts = {name: int(value) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: exact[name] - counts[name], reverse=True)
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
