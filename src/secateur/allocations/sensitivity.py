"""Most from the layers of which the outputs change least, as measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from secateur.allocations.base import Allocation, AllocationTask, register_allocation
from secateur.allocations.scores import mean_score, scores_per_layer
from secateur.errors import ConfigError
from secateur.solvers.gram import conjugate_gradients
from secateur.solvers.problem import Problem

__all__ = ["Sensitivity"]

Curve = Sequence[tuple[int, float]]
"""Units that go, in rising order, and what the layer's outputs then lose."""


@register_allocation("sensitivity")
@dataclass(frozen=True, kw_only=True)
class Sensitivity(Allocation):
    """The least sum of measured errors of all layers' outputs.

    Each layer is pruned on trial to sparsities between (1 - span) and (1 + span) times the target, by the scores
    ``|W[i,j]| · ‖X[j]‖``, and ``‖X (W − Ŵ)ᵀ‖²`` is measured, in units of
    the square of the layer's mean score (see `mean_score`). Between the measured points the error is taken as linear,
    on the lower convex hull of them, so that taking the cheapest stretch of any layer next until the total is reached
    finds the minimum.

    Attributes:
        span: How far a layer may be from the target, as a share of it, in (0, 1].
        points: Sparsities to measure in each layer, ≥ 2.
        iterations: Steps of conjugate gradients that repair the kept weights before the error is measured, ≥ 0.

    Raises:
        ConfigError: A setting is out of its range.

    Example:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.Sensitivity(points=5)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> secateur.prune(model, config, calibration=inputs, solver="wanda", allocation=shares).sparsity
        0.5
    """

    span: float = 0.5
    points: int = 7
    iterations: int = 0

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if not 0 < self.span <= 1:
            raise ConfigError(f"span must lie in (0, 1], found {self.span}.")
        if self.points < 2:
            raise ConfigError(f"points must be at least 2, found {self.points}.")
        if self.iterations < 0:
            raise ConfigError(f"iterations must be at least 0, found {self.iterations}.")

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        grids = self._grids(task)
        curves: dict[str, Curve] = {}
        for _, problems in task.survey():
            for problem in problems:
                curves |= self._measured(problem, grids)
        return cheapest({name: curves[name] for name in task.units}, task.total)

    def _grids(self, task: AllocationTask) -> dict[str, list[int]]:
        """Layer → the counts to measure, evenly spaced, as many in each; some are equal in small layers."""
        unit_share = float(task.pattern.budget.unit_share)
        low, high = (task.target * factor / unit_share for factor in (1 - self.span, 1 + self.span))
        first, last = task.lower, task.upper
        ends = {
            name: (max(first[name], math.floor(low * units)), min(last[name], math.ceil(high * units)))
            for name, units in task.units.items()
        }
        least, most = (sum(end) for end in zip(*ends.values(), strict=True))
        if not least <= task.total <= most:  # bounds are rounded, which matters in layers of a few units
            ends = {name: (first[name], last[name]) for name in task.units}
        steps = self.points - 1
        return {
            name: [start + (end - start) * step // steps for step in range(self.points)]
            for name, (start, end) in ends.items()
        }

    def _measured(self, problem: Problem, grids: Mapping[str, Sequence[int]]) -> dict[str, Curve]:
        """Layer → its curve."""
        curves: dict[str, dict[int, float]] = {part.name: {} for part in problem.parts}
        for point in range(self.points):
            counts = {part.name: grids[part.name][point] for part in problem.parts}
            for name, error in self._errors(problem, counts).items():
                curves[name][counts[name]] = error
        return {name: sorted(curve.items()) for name, curve in curves.items()}

    def _errors(self, problem: Problem, counts: Mapping[str, int]) -> dict[str, float]:
        """Layer → error of its outputs with so many units pruned."""
        parts = [
            replace(part, selector=replace(part.selector, prune=counts[part.name], reduction="sum"))
            for part in problem.parts
        ]
        scores = scores_per_layer(problem)
        keep_GRF = replace(problem, parts=parts).select_per_row(torch.cat(list(scores.values()), dim=1))
        weight_GRF = problem.weight * keep_GRF
        if self.iterations:
            gram = problem.known_gram
            weight_GRF = conjugate_gradients(gram, problem.weight, weight_GRF, keep_GRF, self.iterations)
        lost_GR = problem.energy(problem.weight - weight_GRF)
        lost = {part.name: float(lost_GR[:, slice(*part.rows)].sum(dtype=torch.float64)) for part in parts}
        return {name: found / mean_score(scores[name]) ** 2 for name, found in lost.items()}


def cheapest(curves: Mapping[str, Curve], total: int) -> dict[str, int]:
    """Layer → units that go, in all `total`, with the least sum of errors on the curves' lower convex hulls.

    Where that leaves a choice, the earlier layer loses first.

    Args:
        curves: Layer → its curve, of at least one point.
        total: Units in all, between the sums of the curves' first and last counts.

    Example:
        >>> cheapest({"a": [(0, 0.0), (4, 4.0)], "b": [(0, 0.0), (2, 1.0), (4, 8.0)]}, 5)
        {'a': 3, 'b': 2}
    """
    found = {name: curve[0][0] for name, curve in curves.items()}
    stretches = [(slope, name, units) for name, curve in curves.items() for slope, units in _stretches(curve)]
    missing = total - sum(found.values())
    for _, name, units in sorted(stretches, key=lambda stretch: stretch[0]):
        taken = min(units, missing)
        found[name] += taken
        missing -= taken
    return found


def _stretches(curve: Curve) -> Iterator[tuple[float, int]]:
    """Error per unit and number of units between the corners of a curve's lower convex hull, the flattest first."""
    hull: list[tuple[int, float]] = []
    for point in curve:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    for start, end in pairwise(hull):
        yield _slope(start, end), end[0] - start[0]


def _slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
