"""Measure the layers of one part of a model, of which the input statistics are known.

Legend: G groups, R rows (output channels of one group).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from secateur.allocations.scores import compute_layer_scores, compute_mean_score
from secateur.analysis.pytorch.kept_values import keep_values
from secateur.analysis.scan_plan import LayerCase, ScanPlan, ScanRecorder
from secateur.errors import CalibrationError
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.calibration.expert_statistics import ExpertStatistics
from secateur.oneshot.pytorch.layer_jobs import ExpertsJob
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.targets import Target, build_experts_problem, write_solution
from secateur.solvers.problem import LayerRows, Problem, Solution

__all__ = ["Measure", "StageScan"]

NO_OUTPUTS = "its outputs are all zero on the calibration data"

Measure = Callable[[LayerCase], tuple[float, float | None]]
"""Returns the loss, and the value of a metric if there is one, while a layer is pruned in the model."""


class StageScan:
    """Prunes each layer alone, with every pattern at every sparsity.

    Args:
        plan: The layers.
        targets: Layer → pattern → its target.
        recipe: The solver.
        recorder: Records the losses.
        measure: Measures the model while a layer is pruned; ``None``: errors are computed from the statistics.
    """

    def __init__(
        self,
        plan: ScanPlan,
        targets: Mapping[str, Mapping[str, Target]],
        recipe: Recipe,
        recorder: ScanRecorder,
        measure: Measure | None,
    ) -> None:
        self._plan, self._targets, self._recipe = plan, targets, recipe
        self._recorder, self._measure = recorder, measure

    def scan_group(self, problem: Problem) -> None:
        """Measure layers that read the same inputs."""
        energies = _sum_by_layer(problem, problem.energy(problem.weight))
        if self._measure is None:
            for name in [name for name, energy in energies.items() if energy <= 0]:
                self._recorder.skip(name, NO_OUTPUTS)
                del energies[name]
            self._record_factors(problem, energies)
        by_case: dict[object, list[LayerCase]] = {}
        for name in energies:
            for pruned in self._plan.iterate_cases(name):
                by_case.setdefault(pruned.case, []).append(pruned)
        for members in by_case.values():
            self._scan_members(
                _select_layers(problem, [self._create_rows(member) for member in members]), members, energies
            )
        for layer in problem.layers:
            self._recorder.report_progress(layer.name)

    def _scan_members(self, problem: Problem, members: Sequence[LayerCase], energies: Mapping[str, float]) -> None:
        """Measure layers with the same pattern at the same sparsity."""
        with allow_interrupts():
            solution = self._recipe.layer_solver.solve(problem)
        if self._measure is None:
            lost = _sum_by_layer(problem, problem.energy(problem.weight - solution.weight))
            for member in members:
                self._add(member, lost[member.layer] / energies[member.layer])
            return
        for member, layer in zip(members, problem.layers, strict=True):
            target = self._targets[member.layer][member.case.pattern]
            part, rows = _select_layers(problem, [layer]), slice(*layer.rows)
            own = Solution(weight=solution.weight[:, rows], keep=solution.keep[:, rows])
            with keep_values(target.weight):
                write_solution([target], part, own)
                loss, value = self._measure(member)
            self._add(member, loss, value)

    def scan_experts(self, name: str, experts: ExpertStatistics) -> None:
        """Measure the stacked experts of one layer, which are pruned together."""
        if self._measure is None and experts.find_reason(name) is None:
            problem = build_experts_problem(next(iter(self._targets[name].values())), experts)
            self._record_factors(problem, _sum_by_layer(problem, problem.energy(problem.weight)))
        for pruned in self._plan.iterate_cases(name):
            target = self._targets[name][pruned.case.pattern]
            target = replace(target, selector=replace(target.selector, prune=pruned.pruned_units))
            with keep_values(target.weight):
                result = ExpertsJob(target, self._recipe, experts).run()
                if self._measure is not None:
                    loss, value = self._measure(pruned)
                elif name in result.errors:
                    loss, value = result.errors[name], None
                else:
                    self._recorder.skip(name, result.blind.get(name, NO_OUTPUTS))
                    break
            self._add(pruned, loss, value)
        self._recorder.report_progress(name)

    def _record_factors(self, problem: Problem, energies: Mapping[str, float]) -> None:
        """Record the factors that turn relative errors into errors in units of the squared mean score."""
        for name, scores_GRF in compute_layer_scores(problem).items():
            if energies.get(name, 0.0) > 0:
                self._recorder.set_factor(name, energies[name] / compute_mean_score(scores_GRF) ** 2)

    def _create_rows(self, pruned: LayerCase) -> LayerRows:
        """Return a layer with the number of units to prune; its rows are set later."""
        target = self._targets[pruned.layer][pruned.case.pattern]
        selector = replace(target.selector, prune=pruned.pruned_units)
        return LayerRows(name=pruned.layer, rows=(0, 0), selector=selector, criterion=target.score)

    def _add(self, pruned: LayerCase, loss: float, value: float | None = None) -> None:
        if not math.isfinite(loss):
            raise CalibrationError(
                f"{pruned}: its error must be finite, found {loss}. Check the calibration data, or leave out the layer."
            )
        self._recorder.add(pruned, loss, value)


def _select_layers(problem: Problem, layers: Sequence[LayerRows]) -> Problem:
    """Return the problem of some of the layers, which may have other selectors."""
    rows = {layer.name: slice(*layer.rows) for layer in problem.layers}
    weights = [problem.weight[:, rows[layer.name]] for layer in layers]
    start, placed = 0, []
    for layer, weight in zip(layers, weights, strict=True):
        placed.append(replace(layer, rows=(start, start + weight.shape[1])))
        start += weight.shape[1]
    weight_GRF = problem.weight if len(layers) == len(problem.layers) else torch.cat(weights, dim=1)
    return replace(problem, weight=weight_GRF, layers=placed)


def _sum_by_layer(problem: Problem, values_GR: torch.Tensor) -> dict[str, float]:
    """Return layer → the sum over its rows."""
    return {layer.name: float(values_GR[:, slice(*layer.rows)].sum(dtype=torch.float64)) for layer in problem.layers}
