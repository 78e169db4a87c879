"""Bad input is refused before anything is changed; what goes wrong later names the layer and leaves the masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import secateur
from secateur.errors import ConfigError, LayerError, ScoreError, SecateurError, UnknownNameError, UnsupportedModelError
from tiny_models import bits, mlp
from training.models import CONFIG, PROGRESSIVE, backward, begin, hooks

AT_ONCE = {"start_step": 0, "sparsity_decay_type": "one_shot"}

MAGNITUDE = {**CONFIG, "criterion": "magnitude", "start_step": 0}


def refused(model: Any, config: dict[str, Any], optimizer: Any, kind: type[SecateurError], message: str) -> None:
    with pytest.raises(kind, match=message):
        secateur.prepare(model, config, optimizer=optimizer)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (AT_ONCE, ConfigError, "start_step must be at least 1 for the criterion 'snip_momentum'"),
        ({**AT_ONCE, "criterion": "taylor"}, ConfigError, "criterion 'taylor': it ranks by gradients"),
        ({"start_step": 0, "end_step": None}, ConfigError, "start_step must be at least 1"),
        ({"start_step": 0, "kind": "progressive"}, ConfigError, "start_step must be at least 1"),
        ({"start_step": 0, "sparsity_decay_type": lambda *_: 0.1}, ConfigError, "start_step must be at least 1"),
        ({**MAGNITUDE, **AT_ONCE, "layers": {"2": {"criterion": "snip"}}}, ConfigError, "criterion 'snip'"),
        ({"criterion": "magic"}, UnknownNameError, "Unknown criterion 'magic'"),
        ({"sparsity_decay_type": "magic"}, UnknownNameError, "Unknown schedule 'magic'"),
        ({"pattern": "magic"}, UnknownNameError, "Unknown pattern 'magic'"),
        ({**MAGNITUDE, "layers": {"2": {"criterion": "magic"}}}, UnknownNameError, "Unknown criterion 'magic'"),
        ({"op_names": ["fc"]}, UnknownNameError, "op_names: 'fc' matches no layer"),
        ({"pattern": "3x1"}, LayerError, "No layer of the model can be pruned"),
        ({"pattern": "2:4", "target_sparsity": 0.75}, ConfigError, "out of reach for '2:4'"),
        ({"max_sparsity_ratio_per_op": 0.5}, ConfigError, "out of reach"),
        ({**MAGNITUDE, "sparsity_decay_type": lambda *_: 2.0}, ConfigError, r"must return a sparsity in \[0, 1\]"),
        ({"traget_sparsity": 0.5}, ConfigError, "Unknown key 'traget_sparsity'. Did you mean 'target_sparsity'"),
    ],
)
def test_config(config: dict[str, Any], kind: type[SecateurError], message: str) -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = bits(model)
    refused(model, {**CONFIG, **config}, optimizer, kind, message)
    assert bits(model) == before
    assert hooks(optimizer) == 0
    assert optimizer.state == {}


@pytest.mark.parametrize("name", ["0", "2"])
def test_weights_that_are_no_numbers(name: str) -> None:
    model = mlp()
    model.get_submodule(name).weight.data[3, 5] = torch.nan
    optimizer = SGD(model.parameters(), lr=0.1)
    before = bits(model)
    refused(model, MAGNITUDE, optimizer, ScoreError, f"layer '{name}': weights must be numbers, found nan")
    assert bits(model) == before
    assert hooks(optimizer) == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda _: mlp(1).parameters(), "does not have the weights of 2 of 2 layers to be pruned: '0', '2'. Create"),
        (lambda model: model[2:].parameters(), "does not have the weights of 1 of 2 layers to be pruned: '0'. Create"),
    ],
)
def test_optimizer_without_the_weights(weights: Callable[[nn.Sequential], Any], message: str) -> None:
    model = mlp()
    optimizer = SGD(weights(model), lr=0.1)
    before = bits(model)
    refused(model, MAGNITUDE, optimizer, LayerError, message)
    refused(model, MAGNITUDE, [optimizer], LayerError, message)
    assert bits(model) == before
    assert hooks(optimizer) == 0


def test_no_optimizer() -> None:
    refused(mlp(), CONFIG, [], LayerError, "does not have the weights of 2 of 2 layers")


@pytest.mark.parametrize("optimizer", [0.1, SGD, "sgd", [None], [{}]])
def test_not_an_optimizer(optimizer: Any) -> None:
    refused(mlp(), CONFIG, optimizer, UnsupportedModelError, r"optimizer must be a torch.optim.Optimizer, found")


def test_parameters_instead_of_an_optimizer() -> None:
    model = mlp()
    refused(model, CONFIG, model.parameters(), UnsupportedModelError, "Optimizer, found Parameter")


@pytest.mark.parametrize("model", [None, "bert", nn.Linear, mlp().state_dict()])
def test_not_a_module(model: Any) -> None:
    refused(
        model,
        CONFIG,
        SGD(mlp().parameters(), lr=0.1),
        UnsupportedModelError,
        r"must be a torch.nn.Module or a keras.Model",
    )


# What goes wrong on the way.


@pytest.mark.parametrize("config", [CONFIG, PROGRESSIVE])
@pytest.mark.parametrize("name", ["0", "2"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_gradients_that_are_no_numbers(scope: str, name: str, config: dict[str, Any]) -> None:
    trial = begin({**config, "pruning_scope": scope}, optimizer="sgd").train(range(4))
    before = trial.pruner.masks
    trial.model.zero_grad()
    backward(trial.model, 4)
    trial.model.get_submodule(name).weight.grad.fill_(torch.nan)
    with pytest.raises(ScoreError, match=f"layer '{name}': scores must be numbers, found nan. Check its weights"):
        trial.optimizer.step()
    assert all(torch.equal(mask, before[layer]) for layer, mask in trial.pruner.masks.items())


def test_no_mask_changes_if_the_second_rule_fails() -> None:
    trial = begin({**CONFIG, "layers": {"2": {"target_sparsity": 0.5}}}, optimizer="sgd").train(range(4))
    before = trial.pruner.masks
    trial.model[2].weight.grad.fill_(torch.nan)
    with pytest.raises(ScoreError, match="layer '2'"):
        trial.optimizer.step()
    assert all(torch.equal(mask, before[layer]) for layer, mask in trial.pruner.masks.items())


def test_infinite_gradients_are_scores() -> None:
    trial = begin({**CONFIG, "criterion": "gradient", "end_step": None}, optimizer="sgd")
    backward(trial.model, 0)
    trial.model[0].weight.grad[:4] = torch.inf
    trial.optimizer.step()
    assert trial.pruner.masks["0"][:4].all()
    assert trial.pruner.sparsity == 0.75


def test_layer_that_never_got_a_gradient() -> None:
    trial = begin(optimizer="sgd")
    backward(trial.model, 0)
    trial.model[2].weight.grad = None
    with pytest.raises(
        ScoreError, match="layer '2': 'snip_momentum' ranks by gradients, and none has reached this layer"
    ):
        trial.optimizer.step()
    assert all(mask.all() for mask in trial.pruner.masks.values())


def test_layer_that_misses_some_gradients_keeps_its_scores() -> None:
    trial = begin(optimizer="sgd")
    for step in range(9):
        trial.model.zero_grad()
        backward(trial.model, step)
        if step:
            trial.model[2].weight.grad = None
        trial.optimizer.step()
    assert trial.pruner.finalize().is_complete


def test_layer_without_a_gradient_can_be_ranked_by_magnitude() -> None:
    trial = begin({**CONFIG, "criterion": "magnitude"}, optimizer="sgd")
    for _ in range(9):
        trial.optimizer.step()
    assert trial.pruner.finalize().unit_sparsity == 0.75


def test_schedule_that_goes_wrong_on_the_way() -> None:
    def wrong(initial: float, target: float, progress: float) -> float:
        return 7.0 if progress > 0.4 else initial + target * progress

    trial = begin({**CONFIG, "sparsity_decay_type": wrong}).train(range(4))
    before = trial.pruner.masks
    with pytest.raises(ConfigError, match=r"must return a sparsity in \[0, 1\].* returned 7.0"):
        trial.train([4])
    assert all(torch.equal(mask, before[layer]) for layer, mask in trial.pruner.masks.items())
