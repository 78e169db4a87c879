"""Runs that reorder channels first: less is lost, and the order is undone, resumed and reported with the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from oneshot.problems import ProgressRecorder, batches, execute
from secateur.errors import CalibrationError, ConfigError, UnsupportedModelError
from secateur.oneshot.pytorch.permutation import order_search
from secateur.patterns import channel_permutation
from tiny_models import bits, deep_mlp
from tiny_transformers import family, inputs_of


@pytest.fixture(autouse=True)
def _few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_permutation, "SWEEPS", 20)


def prune(model: nn.Module, config: Any = "2:4", *, given: Any = None, **options: Any) -> Any:
    options = {"solver": "wanda", "permute": True} | options
    return secateur.prune(model, config, **options, **(execute(batches()) if given is None else given))


def measure_loss(model: nn.Module) -> float:
    inputs = torch.cat(batches())
    with torch.no_grad():
        return float((model(inputs) - deep_mlp()(inputs)).square().mean())


def test_less_is_lost_and_reported() -> None:
    models = [deep_mlp(), deep_mlp()]
    reports = [prune(model, permute=permute) for model, permute in zip(models, (False, True), strict=True)]
    plain, permuted = (np.prod(list(report.errors.values())) ** (1 / 3) for report in reports)
    assert permuted < 0.9 * plain
    assert measure_loss(models[1]) < 0.9 * measure_loss(models[0])
    assert reports[0].permutation is None
    report = reports[1]
    assert [group.layers for group in report.permutation.groups] == [("2",), ("4",)]
    assert report.permutation.footer[0] in report.footer
    assert "in a new order of channels" in report.solver
    assert report.summarize().facts["Order of channels"] == report.permutation.footer[0]
    assert report.to_dict()["permutation"]["groups"][0]["layers"] == ["2"]


def test_the_run_is_that_of_the_reordered_model() -> None:
    first, second = deep_mlp(), deep_mlp()
    prune(first)
    secateur.permutation.permute_channels(second, "2:4", calibration=batches())
    prune(second, permute=False)
    assert bits(first) == bits(second)


def test_a_language_model_is_pruned_and_refined_in_the_new_order() -> None:
    model = family("llama")
    report = prune(model, solver="sparsegpt", refine="block", given=execute(inputs_of("llama")))
    assert report.sparsity == 0.5
    assert [group.layers[0].rpartition(".")[2] for group in report.permutation.groups] == ["down_proj"] * 3


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_that_fails_restores_the_order(at: int) -> None:
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        prune(model, given=execute(batches(), progress=ProgressRecorder(ZeroDivisionError, at)))
    assert bits(model) == before


def test_a_resumed_run_uses_the_recorded_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = deep_mlp(), deep_mlp()
    whole = prune(expected)
    with pytest.raises(ZeroDivisionError):
        prune(model, given=execute(batches(), folder=tmp_path, progress=ProgressRecorder(ZeroDivisionError, 4)))
    monkeypatch.setattr(order_search.OrderSearch, "run", None)  # nothing is searched again
    recorder = ProgressRecorder()
    report = prune(model, given=execute(batches(), folder=tmp_path, progress=recorder))
    assert bits(model) == bits(expected)
    assert report.permutation == whole.permutation
    assert {step.action for step in recorder.steps} == {"Pruned"}


def test_another_order_is_another_run(tmp_path: Path) -> None:
    given = execute(batches(), folder=tmp_path, progress=ProgressRecorder(ZeroDivisionError, 4))
    with pytest.raises(ZeroDivisionError):
        prune(deep_mlp(), given=given)
    with pytest.raises(secateur.errors.StateError, match="it differs in recipe"):
        prune(deep_mlp(), permute=False, given=execute(batches(), folder=tmp_path))


def test_progress_is_shown_for_each_group() -> None:
    recorder = ProgressRecorder()
    prune(deep_mlp(), given=execute(batches(), progress=recorder))
    steps = [(step.action, step.stage, step.done, step.total) for step in recorder.steps]
    assert steps[:2] == [("Reordered", "0", 1, 2), ("Reordered", "2", 2, 2)]
    assert len(steps) == 7


def build_keras() -> Any:
    keras = pytest.importorskip("keras")
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (
            deep_mlp,
            {"given": {}, "solver": "magnitude"},
            CalibrationError,
            "permute needs calibration data",
        ),
        (
            deep_mlp,
            {"config": {"pattern": "1x1", "target_sparsity": 0.5}},
            ConfigError,
            "permute needs N:M or blocks of several channels, such as 2:4 or 4x1, found '1x1'",
        ),
        (
            deep_mlp,
            {"config": {"pattern": "channels", "target_sparsity": 0.5}, "solver": "osscar"},
            ConfigError,
            "found 'channels', for which no order of channels is better",
        ),
        (
            build_keras,
            {"given": {}, "solver": "magnitude"},
            UnsupportedModelError,
            "permute supports torch models",
        ),
    ],
)
def test_runs_that_cannot_be_permuted_are_refused(
    build: Callable[[], Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = build()
    with pytest.raises(error, match=message):
        prune(model, **options)
    if isinstance(model, nn.Module):
        assert bits(model) == bits(deep_mlp())
