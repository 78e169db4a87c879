"""Sensitivity allocation: prune most where the measured error of the outputs grows least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from secateur.allocations.base import Allocation, AllocationTask, register_allocation
from secateur.allocations.scores import compute_layer_scores, compute_mean_score
from secateur.errors import ConfigError
from secateur.planning.loss_curves import LossPoints, minimize_error
from secateur.solvers.gram import conjugate_gradients
from secateur.solvers.problem import Problem

__all__ = ["Sensitivity"]


@register_allocation("sensitivity")
@dataclass(frozen=True, kw_only=True)
class Sensitivity(Allocation):
    """Minimize the sum of the measured errors of all layers' outputs.

    Each layer is tentatively pruned to sparsities between (1 - span) and (1 + span) times the target by the scores
    ``|W[i,j]| · ‖X[j]‖``, and ``‖X (W − Ŵ)ᵀ‖²`` is measured in units of the square of the layer's mean score (see
    `compute_mean_score`). Errors are interpolated on the lower convex hull of the measured points, so greedily taking
    the cheapest segment of any layer until the total is reached finds the minimum.

    Attributes:
        span: Maximum deviation of a layer from the target, relative to the target, in (0, 1].
        points: Sparsities to measure per layer, ≥ 2.
        iterations: Conjugate gradient iterations that repair the kept weights before the error is measured, ≥ 0.

    Raises:
        ConfigError: A setting is out of its range.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.Sensitivity(points=5)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", allocation=shares
        ... )
        >>> report.sparsity
        0.5
    """

    span: float = 0.5
    points: int = 7
    iterations: int = 0

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if not 0 < self.span <= 1:
            raise ConfigError(f"span must be in (0, 1], found {self.span}.")
        if self.points < 2:
            raise ConfigError(f"points must be at least 2, found {self.points}.")
        if self.iterations < 0:
            raise ConfigError(f"iterations must be at least 0, found {self.iterations}.")

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        grids = self._build_grids(task)
        curves: dict[str, LossPoints] = {}
        for _, problems in task.iterate_problems():
            for problem in problems:
                curves |= self._measure_curves(problem, grids)
        return minimize_error({name: curves[name] for name in task.units}, task.total)

    def _build_grids(self, task: AllocationTask) -> dict[str, list[int]]:
        """Return layer → evenly spaced counts to measure, the same number per layer; small layers have duplicates."""
        unit_share = float(task.pattern.budget.unit_share)
        low, high = (task.target * factor / unit_share for factor in (1 - self.span, 1 + self.span))
        lower, upper = task.lower, task.upper
        ends = {
            name: (max(lower[name], math.floor(low * units)), min(upper[name], math.ceil(high * units)))
            for name, units in task.units.items()
        }
        low_total, high_total = (sum(end) for end in zip(*ends.values(), strict=True))
        if not low_total <= task.total <= high_total:  # bounds are rounded, which matters for layers with few units
            ends = {name: (lower[name], upper[name]) for name in task.units}
        steps = self.points - 1
        return {
            name: [start + (end - start) * step // steps for step in range(self.points)]
            for name, (start, end) in ends.items()
        }

    def _measure_curves(self, problem: Problem, grids: Mapping[str, Sequence[int]]) -> dict[str, LossPoints]:
        """Return layer → curve."""
        curves: dict[str, dict[int, float]] = {layer.name: {} for layer in problem.layers}
        for point in range(self.points):
            counts = {layer.name: grids[layer.name][point] for layer in problem.layers}
            for name, error in self._measure_errors(problem, counts).items():
                curves[name][counts[name]] = error
        return {name: sorted(curve.items()) for name, curve in curves.items()}

    def _measure_errors(self, problem: Problem, counts: Mapping[str, int]) -> dict[str, float]:
        """Return layer → error of its outputs with the given numbers of units pruned."""
        layers = [
            replace(layer, selector=replace(layer.selector, prune=counts[layer.name], reduction="sum"))
            for layer in problem.layers
        ]
        scores = compute_layer_scores(problem)
        keep_GRF = replace(problem, layers=layers).select_per_row(torch.cat(list(scores.values()), dim=1))
        weight_GRF = problem.weight * keep_GRF
        if self.iterations:
            gram = problem.known_gram
            weight_GRF = conjugate_gradients(gram, problem.weight, weight_GRF, keep_GRF, self.iterations)
        lost_GR = problem.energy(problem.weight - weight_GRF)
        errors = {layer.name: float(lost_GR[:, slice(*layer.rows)].sum(dtype=torch.float64)) for layer in layers}
        return {name: error / compute_mean_score(scores[name]) ** 2 for name, error in errors.items()}
