"""Prepare, step, report, finalize, close: in order, verified, and out of order refused."""

import json
import logging
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import StateError
from tiny_models import bits, mlp
from training.models import CONFIG, begin, hooks, pruned_units, revived


def test_finalize_leaves_a_plain_model() -> None:
    trial = begin().train(range(10))
    before = bits(trial.model)
    report = trial.pruner.finalize()
    assert bits(trial.model) == before
    assert hooks(trial.optimizer) == 0
    assert not trial.pruner.is_active
    assert report.is_complete
    assert (report.step, report.last_step) == (10, 9)
    assert report.dense == {"4": "output layer: dense unless op_names or layers name it"}
    trial.train(range(10, 12))
    assert revived(trial.pruner) != []


@pytest.mark.parametrize("name", ["0", "2"])
def test_finalize_finds_a_weight_that_came_back(name: str) -> None:
    trial = begin({**CONFIG, "pruning_scope": "local"}).train(range(9))
    trial.model.get_submodule(name).weight.data.add_(1)
    with pytest.raises(
        StateError, match=rf"The masks or weights of 1 layers .*\n  {name}: 384 pruned weights are not zero"
    ):
        trial.pruner.finalize()
    assert trial.pruner.is_active


@pytest.mark.parametrize("value", [1e-30, float("nan"), float("inf")])
def test_finalize_finds_a_single_weight(value: float) -> None:
    trial = begin().train(range(9))
    where = (~trial.pruner.masks["2"]).nonzero()[0].tolist()
    trial.model[2].weight.data[tuple(where)] = value
    with pytest.raises(StateError, match="2: 1 pruned weights are not zero"):
        trial.pruner.finalize()


def test_finalize_can_be_repeated_after_the_damage_is_undone() -> None:
    trial = begin().train(range(9))
    trial.model[0].weight.data.add_(1)
    with pytest.raises(StateError):
        trial.pruner.finalize()
    trial.pruner.apply_masks(trial.model)
    assert trial.pruner.finalize().is_complete


def test_finalize_finds_a_weight_that_was_replaced() -> None:
    trial = begin().train(range(9))
    trial.model[0].weight = nn.Parameter(torch.ones(32, 16))
    with pytest.raises(StateError, match="0: its weight is not the parameter that was pruned"):
        trial.pruner.finalize()


def test_finalize_twice() -> None:
    trial = begin().train(range(9))
    trial.pruner.finalize()
    with pytest.raises(StateError, match=r"has already been finalized or closed\. Call secateur.prepare"):
        trial.pruner.finalize()


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 0),
        ({}, 4),
        ({"start_step": 9}, 4),
        ({"pattern": "2:4", "target_sparsity": 0.5}, 4),
        ({"pattern": "2:4", "target_sparsity": 0.25}, 6),
        ({"pattern": "2:4", "target_sparsity": None, "kind": "progressive", "progressive_steps": 2}, 4),
        ({"kind": "progressive", "progressive_steps": 2}, 0),
        ({"kind": "progressive", "progressive_steps": 2}, 3),
        ({"kind": "progressive", "progressive_steps": 2, "pruning_frequency": 4, "end_step": 13}, 8),
    ],
)
def test_finalize_early(config: dict[str, Any], steps: int, caplog: pytest.LogCaptureFixture) -> None:
    trial = begin({**CONFIG, **config}).train(range(steps))
    with caplog.at_level(logging.WARNING, "secateur"):
        report = trial.pruner.finalize()
    assert not report.is_complete
    assert (report.step, report.last_step) == (steps, max(9, config.get("end_step", 9)))
    assert len(caplog.records) == 1
    assert f"finalize() after step {steps}, but the schedule ends at step" in caplog.text
    assert f"The target was not reached: stopped at step {steps}" in str(report)


def test_finalize_in_time_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "secateur"):
        begin().train(range(9)).pruner.finalize()
    assert caplog.records == []


def test_context_closes() -> None:
    trial = begin()
    with trial.pruner as pruner:
        assert pruner is trial.pruner
        assert hooks(trial.optimizer) == 2
    assert hooks(trial.optimizer) == 0
    with pytest.raises(ZeroDivisionError), begin().pruner as pruner:
        _ = 1 / 0
    assert not pruner.is_active


def test_close_may_be_repeated_and_ends_the_run() -> None:
    trial = begin().train(range(4))
    trial.pruner.close()
    trial.pruner.close()
    assert trial.train(range(4, 9)).pruner.step == 4
    with pytest.raises(StateError, match="already been finalized or closed"):
        trial.pruner.finalize()


def test_hooks_of_others_stay() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
    assert hooks(optimizer) == 3
    pruner.close()
    assert hooks(optimizer) == 1


def test_one_run_after_another() -> None:
    first = begin({**CONFIG, "target_sparsity": 0.25, "end_step": 3}).train(range(3))
    assert first.pruner.finalize().unit_sparsity == 0.25
    config = {**CONFIG, "keep_zeros": True}
    second = secateur.prepare(first.model, config, optimizer=first.optimizer)
    before = second.masks
    first.train(range(3, 12))
    assert pruned_units(second) == 192
    assert all((second.masks[name] <= mask).all() for name, mask in before.items())
    assert second.finalize().is_complete


def test_two_pruners_of_one_weight_are_refused() -> None:
    trial = begin({**CONFIG, "op_names": ["0"]})
    before = bits(trial.model)
    at_once = {**CONFIG, "criterion": "magnitude", "start_step": 0, "end_step": 0}
    with pytest.raises(StateError, match=r"Another pruner already prunes '0'\. Call its finalize"):
        secateur.prepare(trial.model, at_once, optimizer=trial.optimizer)
    assert bits(trial.model) == before
    assert hooks(trial.optimizer) == 2
    with secateur.prepare(trial.model, {**CONFIG, "op_names": ["2"]}, optimizer=trial.optimizer) as other:
        trial.train(range(9))
    assert [pruned_units(pruner) for pruner in (trial.pruner, other)] == [96, 96]


@pytest.mark.parametrize(
    ("config", "warns"),
    [({"end_step": None}, True), ({"end_step": 1}, False), ({"end_step": None, "kind": "pattern_lock"}, False)],
)
def test_warning_about_pruning_at_once(config: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    begin({**CONFIG, **config})
    message = "end_step is not set, so all of 4x1 is pruned at once at step 1"
    assert sum(message in record.getMessage() for record in caplog.records) == warns


def test_report_is_plain_values_and_a_table() -> None:
    report = begin().train(range(9)).pruner.report()
    found = report.to_dict()
    assert json.loads(json.dumps(found))["layers"][0]["pruned_units"] == report.layers[0].pruned_units
    assert found["sparsity"] == 0.75
    assert found["is_complete"]
    text = str(report)
    assert "Pruned 75.00% of the weights in 2 layers" in text
    assert "Left 1 other layer dense" in text


def test_numbers_of_a_report() -> None:
    report = begin({**CONFIG, "pruning_scope": "local"}).train(range(9)).pruner.report()
    assert [(layer.name, layer.shape, layer.weights, layer.pruned_weights) for layer in report.layers] == [
        ("0", (32, 16), 512, 384),
        ("2", (16, 32), 512, 384),
    ]
    assert [(layer.units, layer.pruned_units, layer.sparsity) for layer in report.layers] == [(128, 96, 0.75)] * 2
    assert report.model_weights == 512 + 32 + 512 + 16 + 64 + 4
    assert report.model_sparsity == 768 / report.model_weights
