"""Choose how many units each group loses under a budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur.allocations.knapsack import LossCurve
from secateur.graph import Graph
from secateur.patterns.coupled import GroupPattern
from secateur.patterns.rounding import KeepRule
from secateur.planning.planner import Plan
from secateur.slimming.budget import SlimBudget
from secateur.slimming.pytorch.budgets.budget_fitting import FittedBudget, fit_budget
from secateur.slimming.pytorch.budgets.loss_curves import sample_path
from secateur.slimming.pytorch.budgets.uniform_widths import UniformWidths
from secateur.slimming.pytorch.costs import CostModel, create_cost_model
from secateur.slimming.pytorch.costs.slim_copy import find_fixed_groups
from secateur.slimming.pytorch.depth.depth_plan import find_branches
from secateur.solvers.unit_problem import RemovalPath

__all__ = ["BudgetChoice"]

logger = logging.getLogger(__name__)


class BudgetChoice:
    """Chooses the widths of all groups of a plan, given the losses of their units.

    A group that is a branch of a residual network can lose all of its units, unless all widths must be equal.

    Args:
        model: The dense model.
        graph: Its dependencies.
        plan: Which groups may lose units.
        budget: The budget.
        example_inputs: The inputs for which time and operations are measured.
        is_uniform: Whether groups of the same kind keep the same number of units.

    Attributes:
        fitted: The chosen widths; ``None`` before the choice.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, plan: Plan, budget: SlimBudget, example_inputs: Any, *, is_uniform: bool
    ) -> None:
        self._model, self._graph, self._budget, self._example_inputs = model, graph, budget, example_inputs
        self._is_uniform = is_uniform
        numbers = {id(group): number for number, group in enumerate(graph.groups)}
        patterns = [pattern for pattern in plan.patterns if isinstance(pattern, GroupPattern)]
        self._groups: dict[str, tuple[int, KeepRule]] = {
            name: (numbers[id(group)], pattern.budget.rules[name])
            for pattern in patterns
            for name, group in pattern.group_by_name.items()
        }
        self.fitted: FittedBudget | None = None

    def choose_counts(self, paths: Mapping[str, RemovalPath]) -> dict[str, int]:
        """Return group → number of units to remove; see `UnitRun`."""
        curves = {number: sample_path(paths[name], rule) for name, (number, rule) in self._groups.items()}
        self._drop_fixed(curves)
        if not self._is_uniform:
            example = ExampleRun(self._model, self._example_inputs)
            candidates = [number for number, _ in self._groups.values()]
            branches = find_branches(self._model, self._graph, example, candidates)
            for name, (number, _) in self._groups.items():
                if number in branches:
                    curves[number].append((0, float(paths[name].losses[-1])))
        self.fitted = self._fit(curves)
        return {name: rule.units - self.fitted.kept[number] for name, (number, rule) in self._groups.items()}

    def _drop_fixed(self, curves: dict[int, list[tuple[int, float]]]) -> None:
        """Leave only the dense width of groups whose size is a number in the code of a module, with a warning."""
        lowest = {number: curve[-1][0] for number, curve in curves.items()}
        fixed = find_fixed_groups(self._model, self._graph, lowest, self._example_inputs)
        for number, reason in fixed.items():
            curves[number] = curves[number][:1]
            logger.warning("Group %r keeps all units: %s.", self._graph.groups[number].name, reason)

    def _fit(self, curves: Mapping[int, LossCurve]) -> FittedBudget:
        costs = self._create_costs(curves)
        if not self._is_uniform:
            return fit_budget(curves, costs, self._budget)
        widths = UniformWidths(curves, costs)
        fitted = fit_budget(widths.curves, widths.costs, self._budget)
        return replace(fitted, kept=widths.expand(fitted.kept))

    def _create_costs(self, curves: Mapping[int, LossCurve]) -> CostModel:
        lowest = {number: curve[-1][0] for number, curve in curves.items()}
        return create_cost_model(self._budget.quantity, self._model, self._graph, self._example_inputs, lowest)
