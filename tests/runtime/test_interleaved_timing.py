"""Times of layers inside calls of their model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur
from runtime.layer_clock import compile_on_clock
from secateur.runtime.pytorch import SparseLinear
from secateur.runtime.pytorch.interleaved_timing import ModuleTimer, TimePair, time_layers, time_model


class FakeClock:
    """A clock that only moves when a layer sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = FakeClock()


class Sleeps(nn.Module):
    """A layer that takes a number of seconds on the fake clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        CLOCK.now += self.seconds
        return inputs


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(Sleeps(1), nn.ModuleDict({"deep": Sleeps(32)})["deep"], Sleeps(2))


@pytest.fixture
def call(model: nn.Module) -> Callable[[], object]:
    return lambda: model(torch.ones(1))


def test_each_layer_has_its_times(model: nn.Module, call: Callable[[], object]) -> None:
    times = time_layers(model, call, {"0": Sleeps(16), "1": Sleeps(4)}, clock=CLOCK)
    assert times == {"0": TimePair(1.0, 16.0), "1": TimePair(32.0, 4.0)}


def test_all_replacements_are_in_place_at_once(model: nn.Module, call: Callable[[], object]) -> None:
    times = time_model(model, call, {"0": Sleeps(64), "2": Sleeps(128)}, torch.device("cpu"), clock=CLOCK)
    assert times == TimePair(1 + 32 + 2, 64 + 32 + 128)


def test_the_model_is_unchanged(model: nn.Module, call: Callable[[], object]) -> None:
    layers, others = list(model), {"0": Sleeps(1), "1": Sleeps(1)}
    time_layers(model, call, others, clock=CLOCK)
    time_model(model, call, others, torch.device("cpu"), clock=CLOCK)
    assert list(model) == layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*layers, *others.values()))


def test_a_failing_replacement_leaves_the_model_unchanged(model: nn.Module, call: Callable[[], object]) -> None:
    class Fails(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError(inputs)

    layers, failing = list(model), Fails()
    for work in (
        lambda: time_layers(model, call, {"1": failing}),
        lambda: time_model(model, call, {"1": failing}, torch.device("cpu")),
    ):
        with pytest.raises(ArithmeticError):
            work()
        assert list(model) == layers
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*layers, failing))


def test_layers_that_are_called_several_times_have_the_mean_time() -> None:
    model = nn.Sequential(Sleeps(20))
    times = time_layers(model, lambda: [model(torch.ones(1)) for _ in range(3)], {"0": Sleeps(1)}, clock=CLOCK)
    assert times == {"0": TimePair(20.0, 1.0)}


def test_rounds_end_when_the_budget_is_spent() -> None:
    model, calls = nn.Sequential(Sleeps(2)), []

    def call() -> None:
        calls.append(model(torch.ones(1)))

    time_model(model, call, {"0": Sleeps(2)}, torch.device("cpu"), budget=40.0, clock=CLOCK)
    assert len(calls) == 2 * 11  # the first round that starts after 40 seconds does not run


def test_layers_that_are_not_called_have_no_time(model: nn.Module, call: Callable[[], object]) -> None:
    class Unused(nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self[0](inputs)

    assert list(time_layers(Unused(*model), call, {"0": Sleeps(1)}, clock=CLOCK)) == []
    some = Unused(*model)
    assert list(time_layers(some, lambda: some(torch.ones(1)), {"0": Sleeps(1), "1": Sleeps(1)}, clock=CLOCK)) == ["0"]


def test_a_lap_contains_the_calls_since_the_previous_one() -> None:
    timer, layer = ModuleTimer(CLOCK), Sleeps(4)
    with timer.attach(layer):
        layer(torch.ones(1))
        timer.end_lap()
        timer.end_lap()
        layer.seconds = 0
        layer(torch.ones(1))
        timer.end_lap()
    assert timer.laps == [4.0, 0.0]


def prune_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75, "op_names": [".*"], "pruning_scope": "local"})
    return model


def is_dense(module: nn.Module) -> bool:
    return not any(isinstance(part, SparseLinear) for part in module.modules())


def count_seconds_within(model_seconds: float) -> Callable[[nn.Module, bool], float]:
    """Replacements of both layers are faster, the second by a little, and the model with both takes some seconds."""
    dense, sparse = {32: 2.0, 64: 1.0}, {32: 1.0, 64: 0.96}

    def count_seconds(module: nn.Module, _: bool) -> float:
        if isinstance(module, nn.Linear | SparseLinear):
            return (sparse if isinstance(module, SparseLinear) else dense)[module.in_features]
        if isinstance(module, nn.Sequential):
            return 2.0 if is_dense(module) else model_seconds - sum(sparse.values())
        return 0.0

    return count_seconds


def test_times_within_the_model_decide() -> None:
    model, report = compile_on_clock(prune_model(), torch.randn(64, 32), count_seconds_within(4.5))
    assert [row.dense_seconds for row in report.layers] == pytest.approx([2.0, 1.0])
    assert [row.sparse_seconds for row in report.layers] == pytest.approx([1.0, 0.96])
    assert [row.chosen == "dense" for row in report.layers] == [False, True]
    assert report.layers[1].reason.endswith("is not faster")
    assert report.layers[1].bytes == report.layers[1].dense_bytes
    assert isinstance(model[2], nn.Linear)


def test_a_model_that_is_not_faster_as_a_whole_stays_dense() -> None:
    model, report = compile_on_clock(prune_model(), torch.randn(64, 32), count_seconds_within(7.1))
    first, second = report.layers
    assert first.reason.endswith("is faster, but the whole model is not")
    assert second.reason.endswith("is not faster")
    assert (first.chosen, first.bytes, first.error) == ("dense", first.dense_bytes, 0.0)
    assert (report.replaced, report.seconds) == (0, pytest.approx(5.0))
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize(("alone", "timed_within"), [(2.5, False), (1.5, True)])
def test_slow_replacements_are_not_timed_within_the_model(alone: float, *, timed_within: bool) -> None:
    """In the model they would be fast."""

    def count_seconds(module: nn.Module, is_alone: bool) -> float:
        if isinstance(module, SparseLinear):
            return alone if is_alone else 0.5
        return float(isinstance(module, nn.Linear))

    _, report = compile_on_clock(prune_model(), torch.randn(64, 32), count_seconds)
    assert [row.sparse_seconds for row in report.layers] == pytest.approx([0.5 if timed_within else alone] * 2)
    assert report.replaced == 2 * timed_within
