"""Layers timed within the calls of their model."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur
import secateur.runtime
from secateur.runtime.pytorch import compiling, trying, turns
from secateur.runtime.pytorch.turns import Clock, Seconds, layer_seconds, model_seconds


class Sleeps(nn.Module):
    """A layer that takes some milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(1e-3 * self.milliseconds)
        return inputs


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(Sleeps(1), nn.ModuleDict({"deep": Sleeps(30)})["deep"], Sleeps(1))


@pytest.fixture
def call(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.setattr(turns, "BUDGET", 0.0)
    return lambda: model(torch.ones(1))


def test_times_belong_to_their_layers(model: nn.Module, call: Callable[[], object]) -> None:
    found = layer_seconds(model, call, {"0": Sleeps(30), "1": Sleeps(1)})
    assert list(found) == ["0", "1"]
    assert found["0"].before < 0.02 < found["0"].after
    assert found["1"].after < 0.02 < found["1"].before


def test_all_others_are_in_place_at_once(model: nn.Module, call: Callable[[], object]) -> None:
    before, after = model_seconds(model, call, {"0": Sleeps(60), "2": Sleeps(60)}, torch.device("cpu"))
    assert 0.03 < before < 0.1 < 0.15 < after


def test_the_model_is_left_as_it_was(model: nn.Module, call: Callable[[], object]) -> None:
    layers, others = list(model), {"0": Sleeps(0), "1": Sleeps(0)}
    layer_seconds(model, call, others)
    model_seconds(model, call, others, torch.device("cpu"))
    assert list(model) == layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*layers, *others.values()))


def test_it_is_left_as_it_was_by_an_other_that_fails(model: nn.Module, call: Callable[[], object]) -> None:
    class Fails(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError(inputs)

    layers, other = list(model), Fails()
    for work in (
        lambda: layer_seconds(model, call, {"1": other}),
        lambda: model_seconds(model, call, {"1": other}, torch.device("cpu")),
    ):
        with pytest.raises(ArithmeticError):
            work()
        assert list(model) == layers
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*layers, other))


def test_a_layer_that_is_called_often_has_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BUDGET", 0.0)
    model = nn.Sequential(Sleeps(20))
    found = layer_seconds(model, lambda: [model(torch.ones(1)) for _ in range(3)], {"0": Sleeps(1)})
    assert 0.02 < found["0"].before < 0.05
    assert 0.001 < found["0"].after < 0.015


def test_a_layer_that_is_not_called_has_no_time(model: nn.Module, call: Callable[[], object]) -> None:
    class Unused(nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self[0](inputs)

    assert list(layer_seconds(Unused(*model), call, {"0": Sleeps(0)})) == []
    some = Unused(*model)
    assert list(layer_seconds(some, lambda: some(torch.ones(1)), {"0": Sleeps(0), "1": Sleeps(0)})) == ["0"]


def test_a_lap_is_of_the_calls_since_the_last_one() -> None:
    clock, layer = Clock(), Sleeps(4)
    with clock.on(layer):
        layer(torch.ones(1))
        clock.lap()
        clock.lap()
        layer.milliseconds = 0
        layer(torch.ones(1))
        clock.lap()
    assert len(clock.laps) == 2
    assert clock.laps[1] < 0.002 < 0.004 < clock.laps[0]


def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75, "op_names": [".*"]})
    return model


def test_times_within_the_model_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "HOPELESS", 0.0)
    monkeypatch.setattr(compiling, "layer_seconds", lambda *_: {"0": Seconds(2.0, 1.0), "2": Seconds(1.0, 0.96)})
    monkeypatch.setattr(compiling, "model_seconds", lambda *_: Seconds(5.0, 4.5))
    model, report = secateur.runtime.compile(pruned(), torch.randn(64, 32))
    assert [(row.dense_seconds, row.sparse_seconds) for row in report.layers] == [(2.0, 1.0), (1.0, 0.96)]
    assert [row.chosen == "dense" for row in report.layers] == [False, True]
    assert report.layers[1].reason.endswith("is not faster")
    assert report.layers[1].bytes == report.layers[1].dense_bytes
    assert isinstance(model[2], nn.Linear)


def test_a_model_that_does_not_gain_as_a_whole_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "HOPELESS", 0.0)
    monkeypatch.setattr(compiling, "layer_seconds", lambda *_: {"0": Seconds(2.0, 1.0), "2": Seconds(1.0, 0.96)})
    monkeypatch.setattr(compiling, "model_seconds", lambda *_: Seconds(5.0, 5.1))
    model, report = secateur.runtime.compile(pruned(), torch.randn(64, 32))
    first, second = report.layers
    assert first.reason.endswith("is faster, but not the whole model")
    assert second.reason.endswith("is not faster")
    assert (first.chosen, first.bytes, first.error) == ("dense", first.dense_bytes, 0.0)
    assert (report.exchanged, report.seconds) == (0, 5.0)
    assert isinstance(model[0], nn.Linear)


def test_what_takes_much_longer_alone_is_not_timed_within(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    monkeypatch.setattr(trying, "medians", lambda *_, **__: (1.0, 2.5))
    monkeypatch.setattr(compiling, "layer_seconds", lambda _, __, others: timed.extend(others) or {})
    _, report = secateur.runtime.compile(pruned(), torch.randn(64, 32))
    assert timed == []
    assert report.exchanged == 0
    monkeypatch.setattr(trying, "medians", lambda *_, **__: (1.0, 1.5))
    secateur.runtime.compile(pruned(), torch.randn(64, 32))
    assert timed == ["0", "2"]
