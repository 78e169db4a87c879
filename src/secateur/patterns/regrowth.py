"""Distribute a sparsity over layers that keep it while they train, and check which patterns can regrow."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

from secateur._wording import format_list
from secateur.errors import ConfigError
from secateur.frameworks import WeightView
from secateur.patterns.base import BasePattern
from secateur.patterns.specification import Specification

__all__ = ["check_regrowth", "distribute_sparsity", "divide_total"]

SELECTION_METHODS = ("select", "keep_units", "rank_units", "cut_all", "cut_globally")
"""Methods by which a class restricts which units can be kept together."""


def check_regrowth(pattern: BasePattern) -> None:
    """Raise `ConfigError` if a pattern, or its target, does not support kinds that regrow."""
    kind, name = pattern.config.kind, pattern.pattern
    if pattern.coupling is not None or any(len(units.parts) > 1 for units in pattern.units.values()):
        raise ConfigError(
            f"kind={kind!r} does not support pattern {name!r}, whose units are in several layers: once all their "
            f"weights are zero, no gradient reaches them again. Use kind='iterative', or a pattern such as '4x1'."
        )
    restricts = any(getattr(type(pattern), method) is not getattr(BasePattern, method) for method in SELECTION_METHODS)
    if restricts and type(pattern).grow_units is Specification.grow_units:
        raise ConfigError(
            f"kind={kind!r} does not support pattern {name!r}: {type(pattern).__name__} restricts which units are "
            f"selected, and does not define which can regrow. Override grow_units, or use kind='iterative'."
        )
    if pattern.unit_share == 1:
        if kind == "sr_ste":
            raise ConfigError(f"kind='sr_ste' is for N:M patterns such as '2:4', found {name!r}. Use kind='rigl'.")
        return
    if pattern.target_sparsity != float(pattern.unit_share):
        raise ConfigError(
            f"target_sparsity must be {float(pattern.unit_share):.6g} with kind={kind!r} and pattern {name!r}, so that "
            f"every group is pruned, found {pattern.target_sparsity}. Leave it out."
        )
    if pattern.config.sparsity_distribution is not None:
        raise ConfigError(
            f"sparsity_distribution={pattern.config.sparsity_distribution!r} has no effect with pattern {name!r}, "
            f"which prunes the same share of every layer. Set sparsity_distribution=None."
        )


def distribute_sparsity(pattern: BasePattern) -> dict[str, int]:
    """Compute how many units of each layer are pruned from the first step on, in a run that regrows.

    In global scope, the total is exact, and the density of layer *l* is ``ε · (n_in + n_out) / (n_in · n_out)``
    (Erdős–Rényi), or ``ε · (n_in + n_out + w + h) / (n_in · n_out · w · h)`` with kernel sizes *w* and *h*. Layers that
    would exceed density 1, or one of their bounds, stay there, and ε is chosen so that all others make up for it.

    Returns:
        Name of units → number of units, or of groups for N:M.

    Raises:
        ConfigError: The pattern does not support it, or a layer would keep nothing.

    Source:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134, section 3 (1); Mocanu et al.,
        "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018.

    Examples:
        >>> from secateur.patterns import get_pattern
        >>> shapes = {"wide": (100, 80), "narrow": (10, 100)}
        >>> views = {
        ...     name: WeightView(shape=shape, output_axes=(0,), input_axes=(1,))
        ...     for name, shape in shapes.items()
        ... }
        >>> config = {"pattern": "1x1", "kind": "rigl", "target_sparsity": 0.9, "end_step": 9}
        >>> distribute_sparsity(get_pattern(config, views, "array"))
        {'wide': 7441, 'narrow': 659}
    """
    check_regrowth(pattern)
    budget, target = pattern.budget, pattern.target_sparsity
    if pattern.unit_share != 1:
        return dict(budget.units)
    if pattern.is_global:
        counts = _distribute_globally(pattern)
    else:
        counts = {name: budget.count_locally(name, target) for name in budget.units}
    if empty := [name for name, count in counts.items() if count >= budget.units[name]]:
        raise ConfigError(
            f"target_sparsity={target} leaves no units in {format_list(map(repr, empty))}, and nothing regrows in an "
            f"empty layer. Lower the target, or exclude the layer."
        )
    return counts


def _distribute_globally(pattern: BasePattern) -> dict[str, int]:
    budget, target = pattern.budget, pattern.target_sparsity
    lower, upper = budget.lower_bounds(target), budget.upper_bounds()
    bounds = [(max(1, units - upper[name]), units - lower[name]) for name, units in budget.units.items()]
    total = sum(budget.units.values()) - budget.count_total(target)
    if total < (least := sum(low for low, _ in bounds)):
        raise ConfigError(
            f"target_sparsity={target} keeps {total} units, and the {len(bounds)} layers must keep at least {least} in "
            f"total, and at least one each. Lower the target, or exclude layers."
        )
    includes_kernel = pattern.config.sparsity_distribution != "er"
    views = {name: pattern.whole_views[next(iter(units.parts))] for name, units in pattern.units.items()}
    sizes = [
        units * _compute_density(views[name], includes_kernel=includes_kernel) for name, units in budget.units.items()
    ]
    kept = divide_total(sizes, bounds, total)
    return {name: units - count for (name, units), count in zip(budget.units.items(), kept, strict=True)}


def _compute_density(view: WeightView, *, includes_kernel: bool) -> Fraction:
    """Return the density of a layer for ε = 1."""
    outputs, positions, inputs = view.canonical_shape
    if not includes_kernel:
        return Fraction(outputs + inputs, outputs * inputs)
    kernel = sum(view.shape[axis] for axis in view.kernel_axes)
    return Fraction(outputs + inputs + kernel, outputs * inputs * positions)


def divide_total(sizes: Sequence[Fraction], bounds: Sequence[tuple[int, int]], total: int) -> list[int]:
    """Divide a total into whole numbers that are proportional to sizes, within bounds.

    Args:
        sizes: The sizes, > 0.
        bounds: For each of them, the lowest and the highest number, ≥ 0.
        total: The sum, between the sums of the bounds.

    Returns:
        The numbers, rounded by the largest remainder; ties are rounded up at the lower index.

    Examples:
        The first is limited to 4, and the others share the rest:

        >>> divide_total([Fraction(8), Fraction(1), Fraction(1)], [(0, 4), (0, 9), (0, 9)], 9)
        [4, 3, 2]
    """

    def scale_all(scale: Fraction) -> list[Fraction]:
        return [
            min(max(scale * size, Fraction(low)), Fraction(high))
            for size, (low, high) in zip(sizes, bounds, strict=True)
        ]

    def add_all(scale: Fraction) -> Fraction:
        return sum(scale_all(scale), Fraction(0))

    # The sum is linear in the scale between the scales at which one of the numbers meets a bound.
    points = sorted({bound / size for size, pair in zip(sizes, bounds, strict=True) for bound in pair})
    index = bisect_left(points, Fraction(total), key=add_all)
    last = points[min(index, len(points) - 1)]
    first = points[index - 1] if index else last
    start, stop = add_all(first), add_all(last)
    exact = scale_all(first + (last - first) * (total - start) / (stop - start) if stop > start else last)
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts
