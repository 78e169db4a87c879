"""Turn a sensitivity report into the number of units that each layer loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from secateur._wording import format_list
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.patterns import BasePattern
from secateur.planning.loss_curves import LossPoints, clip_hull, interpolate_powers, minimize_error
from secateur.results import LayerSensitivity, SensitivityReport

__all__ = ["UnitBounds", "count_by_sensitivity", "find_layer_targets", "refuse_other_model"]


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


def refuse_other_model(report: SensitivityReport, pattern: BasePattern, digest: Callable[[str], str]) -> None:
    """Raise an error if a report is not about the layers and the pattern.

    Args:
        report: The report.
        pattern: The pattern, bound to layers that share one target.
        digest: Returns the digest of the weight of a layer.

    Raises:
        ConfigError: The report is of another model, other weights or other patterns.
    """
    known = {layer.name: layer for layer in report.layers}
    advice = "Scan this model with secateur.sensitivity, with the same pattern and layers, or leave out allocation."
    if missing := [name for name in pattern.budget.units if name not in known]:
        reasons = {repr(report.dense[name]) for name in missing if name in report.dense}
        raise ConfigError(
            f"the sensitivity report of allocation must cover every layer to prune, and it lacks "
            f"{format_list(map(repr, missing))}{f' ({format_list(sorted(reasons))})' if reasons else ''}. {advice}"
        )
    for name, units in pattern.budget.units.items():
        layer, shape = known[name], tuple(pattern.views[name].shape)
        if layer.shape != shape:
            raise ConfigError(
                f"the sensitivity report of allocation is of another model: layer {name!r} has a weight of shape "
                f"{layer.shape} there, and {shape} here. {advice}"
            )
        if not any((point.pattern, point.units) == (pattern.pattern, units) for point in layer.points):
            patterns = format_list(dict.fromkeys(repr(point.pattern) for point in layer.points))
            raise ConfigError(
                f"the sensitivity report of allocation must have measured {pattern.pattern!r} in layer {name!r}, found "
                f"{patterns} only. {advice}"
            )
    if changed := [name for name in pattern.budget.units if known[name].sha256 != digest(name)]:
        raise ConfigError(
            f"the sensitivity report of allocation is of a model with other weights in "
            f"{format_list(map(repr, changed), limit=4)}. {advice}"
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


def find_layer_targets(
    report: SensitivityReport, pattern: BasePattern, digest: Callable[[str], str]
) -> dict[str, float]:
    """Return layer → target sparsity that means exactly the number of units it loses; see `count_by_sensitivity`.

    Args:
        report: The report.
        pattern: The pattern, bound to layers that share one target.
        digest: Returns the digest of the weight of a layer.

    Raises:
        UnsupportedModelError: The pattern couples layers.
        ConfigError: The report is of another model, or does not reach the target.
    """
    if pattern.coupling is not None or pattern.budget.units.keys() != pattern.views.keys():
        raise UnsupportedModelError(
            f"a sensitivity report distributes the target over single layers, and pattern {pattern.pattern!r} couples "
            f"layers. Leave out allocation."
        )
    refuse_other_model(report, pattern, digest)
    units, share = pattern.budget.units, pattern.budget.unit_share
    counts = count_by_sensitivity(report, pattern, UnitBounds.read(pattern))
    return {name: float(Fraction(count, units[name]) * share) for name, count in counts.items()}


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
