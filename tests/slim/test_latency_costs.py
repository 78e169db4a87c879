"""Times of slimmed models, on a clock that only layers move."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.graph import Graph, trace
from secateur.slimming.budget import SlimBudget
from secateur.slimming.pytorch.budgets.budget_fitting import fit_budget
from secateur.slimming.pytorch.costs import LatencyCost
from secateur.slimming.pytorch.costs.latency_batches import find_layers, form_batches
from secateur.slimming.pytorch.costs.latency_widths import make_ascending
from secateur.slimming.pytorch.costs.paired_timing import PairedTimer

Curves = dict[int, list[tuple[int, float]]]


class LayerClock:
    """A clock that layers move; `factors` slow down each reading, as other programs do."""

    def __init__(self) -> None:
        self.now = 0.0
        self.factor = 1.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds * self.factor


CLOCK = LayerClock()


class TimedLinear(nn.Linear):
    """Takes a second per weight, and ten seconds besides."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        CLOCK.move(10 + self.weight.numel())
        return super().forward(inputs)


class TimedActivation(nn.Module):
    """Takes three seconds per channel, and owns no weights."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        CLOCK.move(3.0 * inputs.shape[-1])
        return inputs.relu()


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.act, self.down = TimedLinear(4, hidden), TimedActivation(), TimedLinear(hidden, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.down(self.act(self.up(inputs)))


class Blocks(nn.Sequential):
    """Two equal blocks and a wider one, whose hidden units are independent."""

    def __init__(self) -> None:
        super().__init__(TimedLinear(4, 4), Block(16), Block(16), Block(32), TimedLinear(4, 2))


class Chain(nn.Sequential):
    """The middle layer shrinks with two groups."""

    def __init__(self) -> None:
        super().__init__(TimedLinear(4, 16), TimedActivation(), TimedLinear(16, 24), TimedLinear(24, 4))


def make_costs(model: nn.Module, names: Mapping[str, int]) -> LatencyCost:
    inputs = torch.ones(3, 4)
    graph = trace(model, inputs)
    lowest = {find_group(graph, name): width for name, width in names.items()}
    return LatencyCost(model, graph, inputs, lowest, clock=CLOCK)


def find_group(graph: Graph, name: str) -> int:
    return [group.name for group in graph.groups].index(name)


def count_seconds(model: nn.Module) -> float:
    start = CLOCK()
    model(torch.ones(3, 4))
    return CLOCK() - start


BLOCKS = {"1.up": 1, "2.up": 1, "3.up": 2}


@pytest.mark.parametrize(("first", "second"), [(16, 32), (8, 32), (16, 16), (1, 2), (6, 20)])
def test_estimates_are_the_measured_times_of_independent_groups(first: int, second: int) -> None:
    model = Blocks()
    costs = make_costs(model, BLOCKS)
    assert costs.dense == count_seconds(model)
    one, two, three = (find_group(costs.graph, name) for name in BLOCKS)
    kept = {one: first, two: 16, three: second}
    hidden = first + 16 + second
    seconds = (16 + 10) + (8 * hidden + 6 * 10) + 3 * hidden + (8 + 10)
    assert costs.measure(kept) == pytest.approx(seconds)
    assert costs.estimate(kept) == pytest.approx(seconds, rel=0.03)


def test_whole_branches_have_no_time() -> None:
    costs = make_costs(Blocks(), dict.fromkeys(BLOCKS, 0))
    one, _, three = (find_group(costs.graph, name) for name in BLOCKS)
    for kept in ({one: 0}, {one: 0, three: 0}, {one: 16, three: 1}):
        hidden = 64 - sum(costs.graph.groups[number].units - kept[number] for number in kept)
        seconds = (16 + 10) + (8 * hidden + 20 * sum(hidden > 0 for hidden in kept.values())) + 3 * hidden + (8 + 10)
        seconds += 20 * (3 - len(kept))
        assert costs.measure(kept) == pytest.approx(seconds)
        assert costs.estimate(kept) == pytest.approx(seconds, rel=0.03)


def test_groups_of_one_kind_have_one_table() -> None:
    costs = make_costs(Blocks(), BLOCKS)
    one, two, three = (find_group(costs.graph, name) for name in BLOCKS)
    widths = [16, 12, 5, 1]
    assert costs.tabulate(one, widths) == pytest.approx(costs.tabulate(two, widths))
    assert costs.tabulate(one, widths)[0] == costs.dense
    assert costs.tabulate(three, [16])[0] < costs.tabulate(one, [8])[0] < costs.dense


def test_a_layer_between_two_groups_shrinks_with_both() -> None:
    model = Chain()
    costs = make_costs(model, {"0": 1, "2": 1})
    kept = {find_group(costs.graph, "0"): 8, find_group(costs.graph, "2"): 12}
    seconds = 3 * 10 + (4 * 8 + 8 * 12 + 12 * 4) + 3 * 8
    assert costs.measure(kept) == pytest.approx(seconds)
    assert costs.estimate(kept) == pytest.approx(seconds, rel=0.05)


def test_other_programs_slow_down_both_models_alike() -> None:
    model = Chain()
    costs = make_costs(model, {"0": 1, "2": 1})
    kept = {find_group(costs.graph, "0"): 4}
    expected = costs.measure(kept)
    CLOCK.factor = 3.0
    try:
        assert costs.measure(kept) == pytest.approx(expected)
    finally:
        CLOCK.factor = 1.0


def test_the_order_of_both_models_alternates_and_the_first_round_does_not_count() -> None:
    calls = []

    class Model(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            calls.append(self.out_features)
            CLOCK.move(100.0 if len(calls) < 3 else self.out_features)
            return super().forward(inputs)

    times = PairedTimer(Model(4, 2), torch.ones(1, 4), CLOCK).compare(Model(4, 1), 0.0)
    assert calls == [2, 1, 1, 2] * (len(calls) // 4)
    assert times == (2.0, 0.5)


def test_groups_that_share_no_layer_are_timed_together() -> None:
    model = Blocks()
    graph = trace(model, torch.ones(3, 4))
    numbers = [find_group(graph, name) for name in BLOCKS]
    layers = find_layers(model, graph, numbers)
    assert layers[numbers[0]] == ["1.down", "1.up"]
    assert form_batches(graph, layers) == [numbers]
    chain = Chain()
    graph = trace(chain, torch.ones(3, 4))
    numbers = [find_group(graph, name) for name in ("0", "2")]
    assert form_batches(graph, find_layers(chain, graph, numbers)) == [[numbers[0]], [numbers[1]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 3.0, 1.0, 4.0], [0.0, 2.0, 2.0, 4.0]),
        ([0.0, -1.0, -2.0], [0.0, 0.0, 0.0]),
        ([0.0, 3.0, 2.0, 1.0], [0.0, 2.0, 2.0, 2.0]),
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]),
    ],
)
def test_violators_are_pooled(values: list[float], expected: list[float]) -> None:
    assert make_ascending(values) == expected


def make_curves(costs: LatencyCost, names: Mapping[str, int]) -> Curves:
    curves = {}
    for name, lowest in names.items():
        group = costs.graph.groups[number := find_group(costs.graph, name)]
        curves[number] = [(kept, float(group.units - kept)) for kept in range(group.units, lowest - 1, -1)]
    return curves


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
@pytest.mark.parametrize(("build", "names"), [(Blocks, BLOCKS), (Chain, {"0": 1, "2": 1})])
def test_a_latency_budget_is_met(build: Callable[[], nn.Module], names: Mapping[str, int], share: float) -> None:
    costs = make_costs(build(), names)
    fitted = fit_budget(make_curves(costs, names), costs, SlimBudget(quantity="latency", value=share))
    assert fitted.describe().share == pytest.approx(share, rel=0.05)
    assert fitted.predicted == pytest.approx(fitted.measured, rel=0.1)
    assert fitted.measured == pytest.approx(costs.measure(fitted.kept))
    assert fitted.measurements <= 6


def test_an_unreachable_latency() -> None:
    costs = make_costs(Blocks(), BLOCKS)
    with pytest.raises(ConfigError, match=r"latency=0\.1 is out of reach: .* the model needs at least .* ms, 1\d\.\d%"):
        fit_budget(make_curves(costs, BLOCKS), costs, SlimBudget(quantity="latency", value=0.1))


def test_a_model_whose_groups_keep_all_units_has_a_dense_time() -> None:
    model = Blocks()
    costs = make_costs(model, {"1.up": 16})
    assert costs.dense == costs.estimate({}) == count_seconds(model)


def test_modes_and_buffers_are_the_same_afterwards() -> None:
    model = nn.Sequential(TimedLinear(4, 8), nn.BatchNorm1d(8), TimedLinear(8, 2)).train()
    before: dict[str, Any] = {name: value.clone() for name, value in model.state_dict().items()}
    make_costs(model, {"0": 1})
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
