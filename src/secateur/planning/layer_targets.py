"""Give each layer its own target, by what was measured of a model or by how it was pruned before."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from secateur.errors import UnsupportedModelError
from secateur.patterns import BasePattern
from secateur.planning.sensitivity_counts import count_by_sensitivity, list_scanned_layers
from secateur.planning.share_counts import count_by_shares, list_shared_layers
from secateur.planning.unit_bounds import UnitBounds
from secateur.results import LayerShares, SensitivityReport

__all__ = ["TargetSource", "count_layer_units", "find_layer_targets", "refuse_other_model"]

TargetSource = SensitivityReport | LayerShares
"""A result by which a target is distributed over layers."""


def refuse_other_model(source: TargetSource, pattern: BasePattern, digest: Callable[[str], str]) -> None:
    """Raise `ConfigError` if a result is not about the layers and the pattern; see `KnownLayers.refuse_other_model`."""
    known = list_scanned_layers(source) if isinstance(source, SensitivityReport) else list_shared_layers(source)
    known.refuse_other_model(pattern, digest)


def count_layer_units(source: TargetSource, pattern: BasePattern, bounds: UnitBounds) -> dict[str, int]:
    """Return layer → units to prune, `bounds.total` in all, within the bounds of each layer.

    Raises:
        ConfigError: The target exceeds the largest sparsity in a sensitivity report.
    """
    if isinstance(source, SensitivityReport):
        return count_by_sensitivity(source, pattern, bounds)
    return count_by_shares(source, pattern, bounds)


def find_layer_targets(source: TargetSource, pattern: BasePattern, digest: Callable[[str], str]) -> dict[str, float]:
    """Return layer → target sparsity that means exactly the number of units it loses; see `count_layer_units`.

    Args:
        source: The result.
        pattern: The pattern, bound to layers that share one target.
        digest: Returns the digest of the weight of a layer.

    Raises:
        UnsupportedModelError: The pattern couples layers.
        ConfigError: The result is of another model, or does not reach the target.
    """
    if pattern.coupling is not None or pattern.budget.units.keys() != pattern.views.keys():
        raise UnsupportedModelError(
            f"allocation must be 'uniform' or 'global' for pattern {pattern.pattern!r}, which couples layers: results "
            f"of scans and searches distribute a target over single layers. Leave out allocation."
        )
    refuse_other_model(source, pattern, digest)
    units, share = pattern.budget.units, pattern.budget.unit_share
    counts = count_layer_units(source, pattern, UnitBounds.read(pattern))
    return {name: float(Fraction(count, units[name]) * share) for name, count in counts.items()}
