"""Turn a sensitivity report into the number of units that each layer loses."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import ConfigError
from secateur.patterns import BasePattern
from secateur.planning.known_layers import KnownLayers
from secateur.planning.loss_curves import LossPoints, clip_hull, interpolate_powers, minimize_error
from secateur.planning.unit_bounds import UnitBounds
from secateur.results import LayerSensitivity, SensitivityReport

__all__ = ["count_by_sensitivity", "list_scanned_layers"]


def list_scanned_layers(report: SensitivityReport) -> KnownLayers:
    """Return the layers that were measured, to compare a model with."""
    return KnownLayers(
        subject="the sensitivity report of allocation",
        verb="measured",
        advice="Scan this model with secateur.sensitivity, with the same pattern and layers, or leave out allocation.",
        layers={layer.name: layer for layer in report.layers},
        patterns={layer.name: tuple(dict.fromkeys(point.pattern for point in layer.points)) for layer in report.layers},
        dense=report.dense,
    )


def count_by_sensitivity(report: SensitivityReport, pattern: BasePattern, bounds: UnitBounds) -> dict[str, int]:
    """Return layer → units to prune, `bounds.total` in all, with the smallest sum of losses.

    Losses are multiplied by the factor of their layer, and interpolated by `interpolate_powers`, on the lower convex
    hull. No layer loses more than at its largest measured sparsity.

    Raises:
        ConfigError: The target exceeds the largest sparsity in the report.
    """
    known = {layer.name: layer for layer in report.layers}
    curves: dict[str, LossPoints] = {}
    for name in pattern.budget.units:
        curve = interpolate_powers(_list_points(known[name], pattern))
        high = min(bounds.upper[name], curve[-1][0])
        if bounds.lower[name] > high:
            raise _make_reach_error(pattern, report, f"layer {name!r} must lose {bounds.lower[name]} units")
        curves[name] = clip_hull(curve, bounds.lower[name], high)
    if (reach := sum(curve[-1][0] for curve in curves.values())) < bounds.total:
        raise _make_reach_error(pattern, report, f"{bounds.total} units must go, and {reach} can")
    return minimize_error(curves, bounds.total)


def _list_points(layer: LayerSensitivity, pattern: BasePattern) -> Sequence[tuple[int, float]]:
    """Return pruned units and weighted loss of the measured points, in ascending order; of equal counts, the last."""
    units = pattern.budget.units[layer.name]
    points = {
        point.pruned_units: layer.loss_factor * point.loss
        for point in layer.points
        if point.pattern == pattern.pattern and point.units == units and point.pruned_units
    }
    return sorted(points.items())


def _make_reach_error(pattern: BasePattern, report: SensitivityReport, reason: str) -> ConfigError:
    measured = [case.sparsity for case in report.cases if case.pattern == pattern.pattern]
    return ConfigError(
        f"the sensitivity report of allocation must reach target_sparsity={pattern.target_sparsity:.6g} with "
        f"{pattern.pattern!r}, and its largest sparsity is {max(measured):.6g}: {reason}. Scan larger sparsities."
    )
