"""What is pruned is exactly zero after every step, whatever trains the model and however it is wrapped."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import secateur
from secateur.errors import LayerError
from tiny_models import bits, mlp
from training.models import (
    CONFIG,
    OPTIMIZERS,
    UNITS,
    NeverRevived,
    backward,
    batch,
    begin,
    hooks,
    pruned_units,
    revived,
    train,
)

CUBIC = {1: 0, 3: 111, 5: 168, 7: 189, 9: 192}
"""Step of an update → units pruned: 256 · 0.75 · (1 - (1 - (step - 1) / 8)³), rounded."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(optimizer: str) -> None:
    trial = begin(optimizer=optimizer)
    trial.train(range(14), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().unit_sparsity == 0.75


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x4", "1xchannel", "channelx1", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(dtype: torch.dtype, pattern: str) -> None:
    config = {**CONFIG, "pattern": pattern, "target_sparsity": 0.5}
    trial = begin(config, model=mlp(dtype=dtype), optimizer="sgd")
    trial.train(range(12), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().unit_sparsity == 0.5
    assert {weight.dtype for weight in trial.model.parameters()} == {dtype}


def test_without_its_hooks_weights_come_back_to_life() -> None:
    trial = begin(optimizer="sgd").train(range(12))
    assert revived(trial.pruner) == []
    trial.pruner.close()
    trial.train(range(12, 14))
    assert revived(trial.pruner) == ["0", "2"]


@pytest.mark.parametrize("scope", ["global", "local"])
def test_counts_are_exact_at_every_update(scope: str) -> None:
    trial = begin({**CONFIG, "pruning_scope": scope})
    found = {}
    trial.train(range(12), lambda step: found.update({step: pruned_units(trial.pruner)}))
    expected = CUBIC if scope == "global" else {step: 2 * round(units / 2) for step, units in CUBIC.items()}
    assert found == {step: expected[max(update for update in expected if update <= step)] for step in range(1, 13)}
    report = trial.pruner.report()
    assert report.sparsity == report.unit_sparsity == 192 / UNITS
    assert report.model_sparsity == 192 * 4 / sum(weight.numel() for weight in trial.model.parameters())


def test_masks_are_copies_in_the_shape_of_the_weights() -> None:
    pruner = begin().pruner
    assert {name: tuple(mask.shape) for name, mask in pruner.masks.items()} == {"0": (32, 16), "2": (16, 32)}
    pruner.masks["0"].zero_()
    assert pruner.masks["0"].all()
    assert pruner.sparsity == 0


# Optimizers.


def test_several_optimizers() -> None:
    model = mlp()
    optimizers = [OPTIMIZERS["sgd"](model[0].parameters()), OPTIMIZERS["adamw"](model[2:].parameters())]
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizers)
    train(model, optimizers, range(12), NeverRevived(pruner))
    assert pruner.step == 12
    assert pruner.finalize().unit_sparsity == 0.75
    assert [hooks(optimizer) for optimizer in optimizers] == [0, 0]


def test_optimizer_of_other_weights_does_not_hold_up_the_run() -> None:
    model = mlp()
    holder, other = OPTIMIZERS["sgd"](model[:4].parameters()), OPTIMIZERS["sgd"](model[4].parameters())
    pruner = secateur.prepare(model, CONFIG, optimizer=[other, holder])
    train(model, holder, range(9))
    assert pruner.step == 9
    assert pruner.finalize().is_complete


def test_optimizer_given_twice_counts_once() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = secateur.prepare(model, CONFIG, optimizer=[optimizer, optimizer])
    train(model, optimizer, range(9))
    assert pruner.step == 9
    assert pruner.finalize().is_complete


def test_slowest_optimizer_sets_the_step() -> None:
    model = mlp()
    often, seldom = OPTIMIZERS["sgd"](model[0].parameters()), OPTIMIZERS["sgd"](model[2:].parameters())
    pruner = secateur.prepare(model, CONFIG, optimizer=[often, seldom])
    for step in range(6):
        train(model, [often] if step % 3 else [often, seldom], [step])
    assert pruner.step == 2


def test_parameter_groups() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2:].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
    train(model, optimizer, range(12), NeverRevived(pruner))
    assert pruner.finalize().is_complete


def test_accumulated_gradients_make_one_step() -> None:
    trial = begin()
    check = NeverRevived(trial.pruner)
    for step in range(10):
        trial.model.zero_grad()
        for part in range(3):
            backward(trial.model, 3 * step + part, scale=1 / 3)
        trial.optimizer.step()
        check(step)
    assert trial.pruner.step == 10
    assert trial.pruner.finalize().is_complete


def test_clipping_and_learning_rate_schedule() -> None:
    trial = begin(optimizer="sgd")
    scheduler = torch.optim.lr_scheduler.OneCycleLR(trial.optimizer, 0.1, total_steps=12)
    check = NeverRevived(trial.pruner)
    for step in range(12):
        trial.model.zero_grad()
        backward(trial.model, step)
        nn.utils.clip_grad_norm_(trial.model.parameters(), 0.1)
        trial.optimizer.step()
        scheduler.step()
        check(step)
    assert trial.pruner.finalize().is_complete


def test_scores_see_the_clipped_gradient() -> None:
    found, free = [], {"max_sparsity_ratio_per_op": 1.0}
    for limit in (0.0, 0.5):
        trial = begin({**CONFIG, "criterion": "snip", "start_step": 1, "end_step": None, **free})
        backward(trial.model, 0)
        nn.utils.clip_grad_value_([trial.model[0].weight], limit)
        trial.optimizer.step()
        found.append(int(trial.pruner.masks["0"].sum()))
    assert found[0] == 0
    assert found[1] > 0


# Models.


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 4)
    ).to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    config = {**CONFIG, "pattern": "2x1", "target_sparsity": 0.5}
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    check = NeverRevived(pruner)
    for step in range(10):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        check(step)
    report = pruner.finalize()
    assert [layer.name for layer in report.layers] == ["0", "1", "2"]
    assert report.unit_sparsity == 0.5
    assert not model[0].weight.is_contiguous()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.inner[2].weight = self.inner[0].weight
        self.head = nn.Linear(16, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(inputs))


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
    train(model, optimizer, range(10), NeverRevived(pruner))
    report = pruner.finalize()
    assert model.inner[2].weight is model.inner[0].weight
    assert [layer.name for layer in report.layers] == ["inner.0"]
    assert report.model_weights == 256 + 32 + 68
    assert int((model.inner[2].weight == 0).sum()) == 192


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(backend: str) -> None:
    torch.compiler.reset()
    model = mlp()
    compiled = torch.compile(model, backend=backend)
    optimizer = OPTIMIZERS["adamw"](compiled.parameters())
    pruner = secateur.prepare(compiled, CONFIG, optimizer=optimizer)
    train(compiled, optimizer, range(10), NeverRevived(pruner))
    plain = begin().train(range(10))
    assert pruner.finalize() == plain.pruner.finalize()
    assert bits(model) == bits(plain.model)


def test_layers_are_named_as_in_the_model_when_it_is_wrapped() -> None:
    model = mlp()
    wrapped = nn.DataParallel(model)
    pruner = secateur.prepare(wrapped, CONFIG, optimizer=OPTIMIZERS["sgd"](wrapped.parameters()))
    assert list(pruner.masks) == ["0", "2"]
    assert pruner.model is model


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 our own bytes


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = mlp(seed=1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_and_loaded])
def test_copy_in_the_middle_is_a_plain_model(copied: Callable[[nn.Module], nn.Module]) -> None:
    trial = begin().train(range(6))
    found = copied(trial.model)
    inputs = batch(0)[0]
    assert torch.equal(found(inputs), trial.model(inputs))
    assert bits(found) == bits(trial.model)
    assert list(found.state_dict()) == list(mlp().state_dict())
    assert {type(module) for module in found.modules()} == {nn.Sequential, nn.Linear, nn.ReLU}
    assert [module for module in found.modules() if module._forward_pre_hooks or module._forward_hooks] == []
    before = bits(found)
    trial.train(range(6, 9), NeverRevived(trial.pruner))
    assert bits(found) == before


@pytest.mark.parametrize("target", [lambda average: average, lambda average: average.module])
def test_masks_for_an_average_of_the_weights(target: Callable[[AveragedModel], nn.Module]) -> None:
    trial = begin(optimizer="sgd")
    average = AveragedModel(trial.model)
    trial.train(range(12), lambda step: average.update_parameters(trial.model))  # noqa: ARG005
    masks = trial.pruner.masks
    assert all(average.module.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    dense = average.module[4].weight.clone()
    trial.pruner.apply_masks(target(average))
    assert not any(average.module.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    assert torch.equal(average.module[4].weight, dense)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(16, 32)), "layer '2' was pruned, but Sequential does not have it"),
        (
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)),
            r"layer '2' has shape \(8, 32\), but its mask has \(16, 32\)",
        ),
    ],
)
def test_masks_for_another_model(other: nn.Module, message: str) -> None:
    trial = begin().train(range(9))
    before = bits(other)
    with pytest.raises(LayerError, match=message):
        trial.pruner.apply_masks(other)
    assert bits(other) == before


def test_model_may_change_its_dtype_on_the_way() -> None:
    trial = begin(optimizer="sgd").train(range(6))
    trial.model.double()
    trial.train(range(6, 12), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().is_complete


# Rules for some layers.


def test_two_patterns_in_one_model() -> None:
    rules: dict[str, Any] = {"2": {"pattern": "2:4", "target_sparsity": None, "criterion": "magnitude"}}
    trial = begin({**CONFIG, "layers": rules})
    trial.train(range(10), NeverRevived(trial.pruner))
    report = trial.pruner.finalize()
    assert [(layer.pattern, layer.sparsity) for layer in report.layers] == [("4x1", 0.75), ("2:4", 0.5)]
    masks = trial.pruner.masks
    assert (masks["2"].reshape(-1, 4).sum(1) == 2).all()
    assert torch.equal(masks["0"], masks["0"][::4].repeat_interleave(4, 0))


def test_rules_may_end_at_different_steps() -> None:
    trial = begin({**CONFIG, "layers": {"2": {"end_step": 4}}}).train(range(4))
    assert trial.pruner.report().layers[1].pruned_units == 96
    assert not trial.pruner.report().is_complete
    assert [layer.pruned_units for layer in trial.train(range(4, 9)).pruner.finalize().layers] == [96, 96]
