"""Runs without an optimizer: the loop announces its steps, and everything else is as in other runs."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

import secateur
from secateur.errors import ConfigError, StateError
from secateur.training.pytorch import PytorchPruner, prepare_by_hand
from tiny_models import bits, mlp
from training.models import CONFIG, OPTIMIZERS, PROGRESSIVE, NeverRevived, backward, begin, hooks

KINDS = {
    "snip_momentum": CONFIG,
    "magnitude": {**CONFIG, "criterion": "magnitude", "start_step": 0},
    "progressive": PROGRESSIVE,
    "2:4": {**CONFIG, "pattern": "2:4", "target_sparsity": 0.5},
}


def train_announced(
    config: dict[str, Any], steps: Iterable[int], *, optimizer: str = "adamw", state: Any = None
) -> tuple[torch.nn.Sequential, PytorchPruner]:
    """Train `mlp`, calling the pruner around each step of an optimizer that is not accessible."""
    model = mlp()
    unknown = OPTIMIZERS[optimizer](model.parameters())
    pruner = secateur.prepare(model, config)
    if state is not None:
        model.load_state_dict(state["model"])
        unknown.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
    check = NeverRevived(pruner)
    for step in steps:
        model.zero_grad()
        backward(model, step)
        pruner.before_step()
        unknown.step()
        pruner.after_step()
        check(step + 1)
    assert hooks(unknown) == 0
    return model, pruner


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_the_same_bits_as_hooks_do(kind: str, optimizer: str) -> None:
    expected = begin(KINDS[kind], optimizer=optimizer).train(range(12))
    model, pruner = train_announced(KINDS[kind], range(12), optimizer=optimizer)
    assert bits(model) == bits(expected.model)
    assert pruner.step == 12
    assert pruner.finalize() == expected.pruner.finalize()


def test_a_state_of_a_run_with_hooks_is_resumed() -> None:
    expected = begin().train(range(12))
    half = begin().train(range(5))
    state = {
        "model": half.model.state_dict(),
        "optimizer": half.optimizer.state_dict(),
        "pruner": half.pruner.state_dict(),
    }
    model, _ = train_announced(CONFIG, range(5, 12), state=state)
    assert bits(model) == bits(expected.model)


def test_without_gradients_before_step_may_be_left_out() -> None:
    model = mlp()
    pruner = secateur.prepare(model, KINDS["magnitude"])
    assert not pruner.needs_gradients
    for _ in range(9):
        pruner.after_step()
    assert pruner.finalize().unit_sparsity == 0.75


def test_calls_in_the_wrong_order() -> None:
    model = mlp()
    pruner = secateur.prepare(model, CONFIG)
    assert pruner.needs_gradients
    with pytest.raises(StateError, match=r"after_step was called without before_step\. Call before_step between"):
        pruner.after_step()
    backward(model, 0)
    pruner.before_step()
    with pytest.raises(StateError, match=r"before_step was called twice\. Call after_step after each step of"):
        pruner.before_step()
    pruner.after_step()
    assert pruner.step == 1
    pruner.close()
    assert not pruner.is_active
    for call in (pruner.before_step, pruner.after_step, pruner.finalize):
        with pytest.raises(StateError, match="already been finalized or closed"):
            call()


def test_a_run_with_an_optimizer_steps_by_itself() -> None:
    trial = begin()
    for call in (trial.pruner.before_step, trial.pruner.after_step):
        with pytest.raises(StateError, match="are for runs without an optimizer, and this run has hooks in"):
            call()
    assert trial.pruner.step == 0


def test_nan_gradients_leave_the_step_unannounced() -> None:
    model = mlp()
    pruner = secateur.prepare(model, {**CONFIG, "end_step": None})
    backward(model, 0)
    gradient = model[2].weight.grad
    assert gradient is not None
    kept = gradient.clone()
    gradient[3, 3] = torch.nan
    with pytest.raises(secateur.SecateurError, match="layer '2': scores must be numbers, found nan"):
        pruner.before_step()
    gradient.copy_(kept)
    pruner.before_step()
    pruner.after_step()
    assert pruner.finalize().is_complete


def test_a_regularizer_needs_a_learning_rate() -> None:
    model = mlp()
    config = {**CONFIG, "reg_type": "group_lasso", "reg_coeff": 0.1}
    with pytest.raises(ConfigError, match=r"reg_type requires an optimizer, .* found 'group_lasso'"):
        secateur.prepare(model, config)
    with pytest.raises(ConfigError, match="reg_type requires an optimizer"):
        secateur.prepare(model, {**CONFIG, "layers": {"2": {"reg_type": "group_lasso", "reg_coeff": 0.1}}})
    assert secateur.prepare(model, {**config, "reg_coeff": 0.0}).is_active


def test_prepare_by_hand_is_deprecated() -> None:
    with pytest.deprecated_call(match=r"Use secateur\.prepare\(model, config\)"):
        pruner = prepare_by_hand(mlp(), CONFIG)
    assert pruner.needs_gradients
