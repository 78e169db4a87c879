"""Find the widths with the lowest loss under a budget, and correct them until the measured cost fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from secateur._wording import format_count, format_list
from secateur.allocations.knapsack import LossCurve
from secateur.errors import ConfigError
from secateur.slimming.budget import BudgetResult, SlimBudget
from secateur.slimming.pytorch.budgets.width_choice import WidthChooser
from secateur.slimming.pytorch.costs.base import CostModel

__all__ = ["FittedBudget", "fit_budget"]

MIN_USE = 0.97
"""Share of a budget of parameters, bytes or FLOPs that is used, where the possible widths allow."""

LATENCY_TOLERANCE = 0.05
"""Largest difference of a measured latency from the budget, as a share of the budget."""

AIMED_TOLERANCE = 0.03
"""The same difference below which no further measurement is made."""

MAX_MEASUREMENTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedBudget:
    """Widths that fit in a budget.

    Attributes:
        budget: The budget.
        kept: Group index → kept units, for each group with a curve.
        loss: Sum of their losses.
        dense: Cost of the dense model, in the unit of the budget.
        target: The value that the budget allows, in the same unit.
        predicted: The estimated cost of these widths before it was measured.
        measured: The measured cost of a model with these widths.
        measurements: Number of widths that were measured.
    """

    budget: SlimBudget
    kept: Mapping[int, int]
    loss: float
    dense: float
    target: float
    predicted: float
    measured: float
    measurements: int

    def describe(self) -> BudgetResult:
        """Return how the budget was met, for reports."""
        return BudgetResult(
            quantity=self.budget.quantity,
            dense=self.dense,
            target=self.target,
            predicted=self.predicted,
            measured=self.measured,
        )


class _MeasuredWidths(NamedTuple):
    """Widths that were measured.

    Attributes:
        kept: Group index → kept units.
        loss: Sum of their losses.
        estimated: The estimate of the cost model.
        predicted: The estimate, corrected by previous trials.
        measured: The measured cost.
    """

    kept: Mapping[int, int]
    loss: float
    estimated: float
    predicted: float
    measured: float


def fit_budget(
    curves: Mapping[int, LossCurve],
    cost_model: CostModel,
    budget: SlimBudget,
    *,
    max_measurements: int = MAX_MEASUREMENTS,
) -> FittedBudget:
    """Choose the widths of all groups with the lowest total loss under a budget.

    A multiple-choice knapsack chooses by estimated costs. Then the cost is measured, and the next choice corrects the
    difference, until the measured cost is just below the budget, or a latency is within `LATENCY_TOLERANCE` of it.

    Args:
        curves: Group index → its loss curve. Groups without one keep all units.
        cost_model: The cost model.
        budget: How much may remain.
        max_measurements: Maximum number of widths to measure, ≥ 1.

    Returns:
        The widths. Their measured number of parameters, bytes or FLOPs never exceeds the budget. Their latency is the
        measured one that is closest to it, exceeds it by at most `LATENCY_TOLERANCE`, and is below that of the dense
        model.

    Raises:
        ConfigError: The budget is out of reach; the message names the reachable cost and the groups that keep all
            units.
    """
    fitting = _Fitting(curves, cost_model, budget)
    best = fitting.run(max_measurements)
    return FittedBudget(
        budget=budget,
        kept=best.kept,
        loss=best.loss,
        dense=cost_model.dense,
        target=fitting.target,
        predicted=best.predicted,
        measured=best.measured,
        measurements=len(fitting.trials),
    )


class _Fitting:
    """The state of `fit_budget`.

    Attributes:
        target: The value that the budget allows.
        trials: The measured widths.
    """

    def __init__(self, curves: Mapping[int, LossCurve], costs: CostModel, budget: SlimBudget) -> None:
        self._costs, self._budget = costs, budget
        self._dense = {number: curve[0][0] for number, curve in curves.items()}
        self._chooser = WidthChooser(curves, costs)
        self._is_timed = budget.quantity == "latency"
        self.target = budget.compute_target(costs.dense)
        self.trials: list[_MeasuredWidths] = []

    def run(self, max_measurements: int) -> _MeasuredWidths:
        """Measure until no better trial is expected, and return the best one."""
        dense = self._costs.dense
        if self.target >= dense:
            return _MeasuredWidths(self._dense, 0.0, dense, dense, dense)
        while len(self.trials) < max_measurements:
            known = [trial.kept for trial in self.trials]
            kept = next((kept for kept in map(self._chooser.choose, self._list_limits()) if kept not in known), None)
            if kept is None or self._is_accepted(self._measure(kept)):
                break
        return self._get_best()

    def _measure(self, kept: Mapping[int, int]) -> _MeasuredWidths:
        estimated = self._costs.estimate(kept)
        predicted = self._interpolate(((trial.estimated, trial.measured) for trial in self.trials), estimated)
        measured = self._costs.measure(kept)
        self.trials.append(_MeasuredWidths(kept, self._chooser.sum_losses(kept), estimated, predicted, measured))
        return self.trials[-1]

    def _list_limits(self) -> Iterator[float]:
        """Yield limits for the estimate that should give the target when measured, the most likely first."""
        points = [(trial.measured, trial.estimated) for trial in self.trials]
        yield self._interpolate(points, self.target)
        if self._is_timed:
            yield self._interpolate(points, (1 + AIMED_TOLERANCE) * self.target)
        below = [trial.estimated for trial in self.trials if trial.measured <= self.target]
        above = [trial.estimated for trial in self.trials if trial.measured > self.target]
        if below and above:
            yield (max(below) + min(above)) / 2

    def _interpolate(self, points: Iterable[tuple[float, float]], x: float) -> float:
        """Interpolate y at x between the nearest points, or extrapolate from the dense cost through the nearest one."""
        dense = self._costs.dense
        ordered = sorted(points)
        lower, upper = [point for point in ordered if point[0] <= x], [point for point in ordered if point[0] > x]
        if not ordered:
            return x
        first, second = (lower or upper)[-1 if lower else 0], upper[0] if lower and upper else (dense, dense)
        if first[0] == second[0]:
            return first[1]
        return first[1] + (x - first[0]) * (second[1] - first[1]) / (second[0] - first[0])

    def _is_accepted(self, trial: _MeasuredWidths) -> bool:
        """Whether no further measurement is needed."""
        if self._is_timed:
            return abs(trial.measured - self.target) <= AIMED_TOLERANCE * self.target
        is_best = trial.measured == trial.estimated or trial.measured >= MIN_USE * self.target
        return trial.measured <= self.target and is_best

    def _get_best(self) -> _MeasuredWidths:
        """Return the trial that uses the budget best.

        Raises:
            ConfigError: None fits.
        """
        limit = min(self.target * (1 + LATENCY_TOLERANCE), self._costs.dense) if self._is_timed else self.target
        fitting = [trial for trial in self.trials if trial.measured <= limit and trial.measured < self._costs.dense]
        if not fitting:
            raise self._make_error()
        if self._is_timed:
            return min(fitting, key=lambda trial: (abs(trial.measured - self.target), trial.loss))
        return min(fitting, key=lambda trial: (trial.loss, trial.measured))

    def _make_error(self) -> ConfigError:
        costs, least = self._costs, min(trial.measured for trial in self.trials)
        groups = [group for number, group in enumerate(costs.graph.groups) if number not in self._dense]
        left = f" Groups that keep all units: {format_list(repr(group.name) for group in groups)}." if groups else ""
        return ConfigError(
            f"budget {self._budget} is out of reach: it allows {self._describe(self.target)}, and the model needs at "
            f"least {self._describe(least)}, {least / costs.dense:.1%} of the dense model's, with as few units as "
            f"{format_count(len(self._dense), 'group')} may keep.{left} The rest is in weights and operations that no "
            f"group shrinks. Allow more, or let groups keep fewer units."
        )

    def _describe(self, cost: float) -> str:
        return f"{cost * 1e3:.3g} ms" if self._is_timed else f"{cost:,.0f} {self._budget.unit}"
