"""Test the recipes of `secateur.prune`, which choose the solver and the refiners."""

import logging
import math
import time
from typing import Any

import keras
import pytest
import torch
from torch import nn

import secateur
from oneshot.problems import batches
from secateur.errors import CalibrationError, ConfigError, UnknownNameError, UnsupportedModelError
from secateur.oneshot.pytorch.named_recipes import BLOCK_SHARE, EPOCHS, RATE, UNITS_DENSE_SHARE
from secateur.refiners import Block, Distill
from secateur.solvers import ALPS
from tiny_models import bits, deep_mlp

DATA = batches(8, rows=512)


def prune(config: Any = "2:4", **options: Any) -> tuple[nn.Module, Any]:
    model = deep_mlp()
    return model, secateur.prune(model, config, **{"calibration": DATA, "recipe": "best"} | options)


def test_the_recipe_is_alps_then_blocks_then_distillation() -> None:
    model, report = prune()
    same, _ = prune(recipe=None, solver=ALPS(), refine=[Block(), Distill(rate=RATE, epochs=EPOCHS)])
    plain, _ = prune(recipe=None, solver="alps")
    assert bits(model) == bits(same) != bits(plain)
    assert report.solver.startswith("ALPS(")
    assert report.phases[-1].remark == f"{EPOCHS * len(DATA) // 2} steps"


class Branches(nn.Module):
    """A model without a stack of blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.left(features) + self.right(features)


def test_without_a_stack_of_blocks_the_whole_model_is_tuned_only() -> None:
    model, same = Branches(), Branches()
    report = secateur.prune(model, "2:4", calibration=DATA, recipe="best")
    secateur.prune(same, "2:4", calibration=DATA, solver=ALPS(), refine=Distill(rate=RATE, epochs=EPOCHS))
    assert bits(model) == bits(same)
    assert report.sparsity == 0.5


def test_channels_are_pruned_by_osscar() -> None:
    config = {"pattern": "channels", "target_sparsity": 0.5}
    model, report = prune(config)
    same, _ = prune(
        config, recipe=None, solver="osscar", refine=[Block(dense_share=UNITS_DENSE_SHARE), Distill(epochs=EPOCHS)]
    )
    assert bits(model) == bits(same)
    assert report.phases[-1].name == "Distill"


@pytest.mark.parametrize("minutes", [0, -1.0, math.nan, math.inf])
def test_minutes_must_be_positive(minutes: float) -> None:
    with pytest.raises(ConfigError, match=f"minutes must be a number above 0, found {minutes}"):
        prune(minutes=minutes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "bst"}, UnknownNameError, r"Unknown recipe 'bst'\. Did you mean 'best'\? Known: best\."),
        ({"recipe": None, "minutes": 3}, ConfigError, r"minutes is the time limit of a recipe.*Pass recipe='best'"),
        ({"solver": "alps"}, ConfigError, r"recipe='best' chooses the solver .* Leave out solver or recipe\."),
        ({"refine": ["pcg"]}, ConfigError, r"recipe='best' chooses the solver .* Leave out refine or recipe\."),
        ({"calibration": None}, CalibrationError, r"ALPS needs calibration data, found none\. Pass calibration="),
        ({"loss": len, "config": {"pattern": "1xchannel", "criterion": "mask_fisher"}}, ConfigError, "recipe has no e"),
    ],
)
def test_contradictions_are_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune(**options)


def test_keras_models_are_refused() -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    with pytest.raises(UnsupportedModelError, match="recipe supports torch models only"):
        secateur.prune(model, "2:4", recipe="best", minutes=1)


class Clock:
    """A clock that advances whenever a layer of a model runs, and never by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def prune(self, minutes: float, *, seconds_per_batch: float) -> tuple[nn.Module, Any]:
        model = deep_mlp()

        def advance(*_: object) -> None:
            self.now += seconds_per_batch / len(model)

        for layer in model:
            layer.register_forward_hook(advance)
        return model, secateur.prune(model, "2:4", calibration=DATA, recipe="best", minutes=minutes)


def test_distillation_gets_the_rest_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    _, report = clock.prune(10, seconds_per_batch=6.0)
    assert "until the time was over" in report.phases[-1].remark
    assert 560 < clock.now - 50 <= 600
    assert 500 < sum(phase.seconds for phase in report.phases) <= report.seconds <= 600


def test_without_time_left_the_model_is_pruned_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "secateur"):
        model, report = Clock(monkeypatch).prune(0.1, seconds_per_batch=6.0)
    assert report.phases[-1].remark.startswith("0 steps, until the time was over")
    assert report.sparsity == 0.5
    assert bits(model) == bits(prune(recipe=None, solver="alps", refine=Block(steps=1))[0])
    assert "minutes" in caplog.text


def test_blocks_get_equal_shares_of_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []

    def record(self: Block, task: Any) -> None:
        seconds.append(60 * self.minutes * task.time_share)

    monkeypatch.setattr(Block, "refine", record)
    prune(minutes=2)
    prune({"pattern": "2:4", "excluded_op_names": ["0"]}, minutes=2)
    assert seconds == pytest.approx(3 * [120 * BLOCK_SHARE / 3] + 2 * [120 * BLOCK_SHARE / 2])
    assert torch.is_grad_enabled()


def test_distillation_ends_after_some_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = Clock(monkeypatch).prune(600, seconds_per_batch=0.001)
    assert report.phases[-1].remark == f"{EPOCHS * len(DATA) // 2} steps"
