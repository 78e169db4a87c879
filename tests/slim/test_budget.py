"""Budgets: how they are read, and how widths are found that fit in them."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError, UnknownNameError
from secateur.graph import Graph, Group, trace
from secateur.patterns.rounding import KeepRule
from secateur.slimming.budget import SlimBudget
from secateur.slimming.pytorch.budgets.budget_fitting import FittedBudget, fit_budget
from secateur.slimming.pytorch.budgets.loss_curves import sample_path
from secateur.slimming.pytorch.costs import ByteCost, CostModel, ParameterCost
from secateur.solvers.unit_problem import RemovalPath
from zoo import ZOO

Curves = dict[int, list[tuple[int, float]]]


@pytest.mark.parametrize(
    ("budget", "target"),
    [({"parameters": 0.8}, 800.0), ({"flops": 0.25}, 250.0), ({"bytes": 500}, 500.0), ({"latency": 0.6}, 600.0)],
)
def test_a_budget_is_a_share_or_a_number(budget: dict[str, float], target: float) -> None:
    parsed = SlimBudget.parse(budget)
    assert parsed.compute_target(1000) == pytest.approx(target)
    assert parsed.is_share == (target != 500)
    assert SlimBudget.parse(parsed) is parsed
    assert str(parsed) == f"{next(iter(budget))}={next(iter(budget.values()))}"


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ({"parameter": 0.5}, UnknownNameError, "unknown quantity 'parameter'. Did you mean 'parameters'. Known: 'par"),
        ({3: 0.5}, UnknownNameError, "unknown quantity 3. Known: 'parameters'"),
        ({}, ConfigError, "exactly one of the keys 'parameters', 'flops', 'bytes', 'latency'"),
        ({"flops": 0.5, "bytes": 0.5}, ConfigError, "exactly one of the keys"),
        (0.5, ConfigError, "must be a mapping with exactly one .* found 0.5"),
        ({"flops": 0}, ConfigError, "'flops' must be the share .* absolute number of FLOPs above 1, found 0"),
        ({"flops": -3}, ConfigError, "found -3"),
        ({"parameters": 1}, ConfigError, "found 1"),
        ({"parameters": True}, ConfigError, "found True"),
        ({"bytes": math.nan}, ConfigError, "found nan"),
        ({"bytes": math.inf}, ConfigError, "found inf"),
        ({"bytes": "4MB"}, ConfigError, "found '4MB'"),
        ({"latency": 2.0}, ConfigError, "above 0 and below 1, found 2.0"),
    ],
)
def test_bad_budgets(budget: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SlimBudget.parse(budget)


def make_path(units: int) -> RemovalPath:
    return RemovalPath(order=torch.arange(units), losses=torch.arange(units + 1.0).square())


def test_a_path_is_sampled_where_the_rule_allows() -> None:
    rule = KeepRule(units=20, step=8, minimum=3)
    assert sample_path(make_path(20), rule) == [(20, 0.0), (16, 16.0), (8, 144.0)]


def test_a_path_is_sampled_at_so_many_points() -> None:
    curve = sample_path(make_path(100), KeepRule(units=100), points=4)
    assert curve == [(100, 0.0), (67, 33.0**2), (34, 66.0**2), (1, 99.0**2)]


def test_all_units_can_go_if_the_rule_has_no_minimum() -> None:
    assert sample_path(make_path(4), KeepRule(units=4, minimum=0), points=2) == [(4, 0.0), (0, 16.0)]


def test_a_group_that_must_keep_all_units_has_one_point() -> None:
    assert sample_path(make_path(4), KeepRule(units=4, minimum=4)) == [(4, 0.0)]


class Costs(CostModel):
    """Each unit costs 1, besides a fixed cost; the measured cost is another function of the estimate."""

    quantity = "latency"

    def __init__(self, units: Sequence[int], distort: Callable[[float], float], fixed: float = 20) -> None:
        self.graph, self._units, self._fixed, self._distort = Graph(groups=()), units, fixed, distort
        self.dense = self.estimate({})
        self.measured: list[dict[int, int]] = []

    def estimate(self, kept: Mapping[int, int]) -> float:
        return self._fixed + sum(kept.get(number, units) for number, units in enumerate(self._units))

    def measure(self, kept: Mapping[int, int]) -> float:
        self.measured.append(dict(kept))
        return self._distort(self.estimate(kept))


def make_curves(units: Sequence[int]) -> Curves:
    """Removing units of groups with greater numbers costs more."""
    return {
        number: [(count - gone, float(gone * (number + 1))) for gone in range(count)]
        for number, count in enumerate(units)
    }


def fit(distort: Callable[[float], float], budget: dict[str, float]) -> tuple[FittedBudget, Costs]:
    costs = Costs([40, 40], distort)
    return fit_budget(make_curves([40, 40]), costs, SlimBudget.parse(budget)), costs


def test_a_true_estimate_needs_one_measurement() -> None:
    fitted, costs = fit(lambda cost: cost, {"flops": 0.6})
    assert fitted.kept == {0: 1, 1: 39}
    assert (fitted.dense, fitted.target, fitted.measured, fitted.predicted) == (100, 60, 60, 60)
    assert (fitted.measurements, fitted.loss) == (1, 39 + 2)
    assert fitted.describe().share == fitted.predicted / fitted.dense == 0.6
    assert costs.measured == [fitted.kept]


@pytest.mark.parametrize(
    "distort",
    [
        pytest.param(lambda cost: 100 - 0.6 * (100 - cost), id="saves less than estimated"),
        pytest.param(lambda cost: 100 - 1.2 * (100 - cost), id="saves more than estimated"),
        pytest.param(lambda cost: cost**2 / 100, id="quadratic"),
        pytest.param(lambda cost: 10 * cost**0.5, id="root"),
        pytest.param(lambda cost: 8 * math.ceil(cost / 8), id="steps"),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_widths_are_corrected_until_the_measured_latency_fits(distort: Callable[[float], float], share: float) -> None:
    fitted, costs = fit(distort, {"latency": share})
    reachable = [distort(cost) for cost in range(22, 100)]
    nearest = min(abs(cost - fitted.target) for cost in reachable)
    assert abs(fitted.measured - fitted.target) <= max(0.05 * fitted.target, nearest)
    assert fitted.measurements == len(costs.measured) <= 6
    assert fitted.measured == distort(costs.estimate(fitted.kept))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("exponent", [0.8, 1.5, 2])
def test_other_costs_stay_just_below_the_budget(exponent: float, share: float) -> None:
    fitted, costs = fit(lambda cost: 100 * (cost / 100) ** exponent, {"flops": share})
    assert 0.97 * fitted.target <= fitted.measured <= fitted.target
    assert fitted.measurements == len(costs.measured) <= 6


def test_the_promise_is_corrected_by_what_was_measured() -> None:
    fitted, _ = fit(lambda cost: 100 - 0.6 * (100 - cost), {"latency": 0.7})
    assert fitted.measurements == 2
    assert fitted.predicted == pytest.approx(fitted.measured)


def test_a_budget_out_of_reach_says_what_is_not() -> None:
    message = r"latency=0.1 is out of reach: it allows 1e\+04 ms, and the model needs at least 2.2e\+04 ms, 22.0%"
    with pytest.raises(ConfigError, match=message):
        fit(lambda cost: cost, {"latency": 0.1})


def test_a_model_is_never_slower_than_dense() -> None:
    with pytest.raises(ConfigError, match=r"at least 1.06e\+05 ms, 106.0% of the dense model's"):
        fit(lambda cost: 200 - cost if cost < 94 else 106, {"latency": 0.98})


def test_a_budget_above_the_dense_model_keeps_everything() -> None:
    fitted, costs = fit(lambda cost: cost, {"bytes": 1e6})
    assert fitted.kept == {0: 40, 1: 40}
    assert (fitted.loss, fitted.measurements, costs.measured) == (0, 0, [])


def list_prunable(graph: Graph) -> list[tuple[int, Group]]:
    return [(number, group) for number, group in enumerate(graph.groups) if group.obstacle is None]


class Chain(nn.Sequential):
    """Each hidden layer shrinks with the groups on both of its sides."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
        self.extend([nn.ReLU(), nn.Linear(8, 3)])


@pytest.mark.parametrize("kind", [ParameterCost, ByteCost])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
def test_weights_that_shrink_with_two_groups(kind: type[CostModel], share: float) -> None:
    """The loss is near to the best of all widths, and the budget is used."""
    model = Chain()
    costs = kind(model, trace(model, torch.randn(2, 6)), torch.randn(2, 6))
    rates = {12: 1.0, 10: 1.7, 8: 0.8}
    curves = {
        number: [(kept, rates[group.units] * (group.units - kept) ** 1.5) for kept in range(group.units, 0, -1)]
        for number, group in list_prunable(costs.graph)
    }
    fitted = fit_budget(curves, costs, SlimBudget(quantity=kind.quantity, value=share))
    assert fitted.measured == costs.estimate(fitted.kept) <= fitted.target
    losses = []
    for widths in product(*curves.values()):
        kept = {number: kept for number, (kept, _) in zip(curves, widths, strict=True)}
        if costs.estimate(kept) <= fitted.target:
            losses.append(sum(loss for _, loss in widths))
    assert min(losses) <= fitted.loss <= 1.05 * min(losses)


@pytest.mark.parametrize("name", ["DenseNet", "InvertedBottleneck", "UNet", "EmbeddedStream"])
def test_budgets_are_used_where_widths_allow(name: str) -> None:
    model = ZOO[name].create()
    costs = ParameterCost(model, trace(model, ZOO[name].inputs), ZOO[name].inputs)
    groups = dict(list_prunable(costs.graph))
    curves = {
        number: [(kept, (group.units - kept) / group.units) for kept in range(group.units, 0, -1)]
        for number, group in groups.items()
    }
    step = max(costs.dense - costs.estimate({number: group.units - 1}) for number, group in groups.items())
    for share in (0.5, 0.8):
        fitted = fit_budget(curves, costs, SlimBudget(quantity="parameters", value=share))
        assert min(0.97 * fitted.target, fitted.target - step) <= fitted.measured <= fitted.target


def test_an_unreachable_number_of_parameters_names_groups_that_stay() -> None:
    model = Chain()
    costs = ParameterCost(model, trace(model, torch.randn(2, 6)), torch.randn(2, 6))
    curves = {next(number for number, group in list_prunable(costs.graph)): [(12, 0.0), (6, 1.0)]}
    with pytest.raises(
        ConfigError,
        match=r"at least 227 parameters, 69.0% .* as 1 group may keep. Groups that keep all units: .*'2', '4'",
    ):
        fit_budget(curves, costs, SlimBudget(quantity="parameters", value=0.3))


def test_units_with_a_size_in_the_code_do_not_count_as_removed(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = ZOO["MultiQuery"].create(), ZOO["MultiQuery"].inputs
    with pytest.raises(ConfigError, match=r"the model needs at least 390 parameters, 100\.0% of the dense model's"):
        secateur.slim(model, calibration=[inputs], example_inputs=inputs, budget={"parameters": 0.7})
    assert "Group 'v' keeps all units: the code of the model itself passes 3 to aten.view" in caplog.text
