"""Whatever ends a step early, pruned weights are zero when the run is closed or goes on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import secateur
from secateur.errors import LayerError, StateError
from secateur.training.pytorch import PytorchPruner
from tiny_models import mlp
from training.models import CONFIG, OPTIMIZERS, PROGRESSIVE, backward, begin, hooks, pruned_units, revived

LASSO = {**CONFIG, "reg_type": "group_lasso", "reg_coeff": 0.01}
RULES = {**CONFIG, "layers": {"2": {"pattern": "2:4", "target_sparsity": 0.5, "kind": "progressive"}}}
CONFIGS = {"iterative": CONFIG, "progressive": PROGRESSIVE, "lasso": LASSO, "rules": RULES}


class InterruptAt(TorchDispatchMode):
    """Raise `KeyboardInterrupt` instead of running the operation of this number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return operation(*args, **(kwargs or {}))


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class Unlucky(torch.optim.Optimizer):
    """Changes the weights and then raises, if told to."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {"lr": 0.1})
        self.should_raise = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for weight in self.param_groups[0]["params"]:
            weight.sub_(0.1 * weight.grad + 0.01)
        if self.should_raise:
            raise KeyboardInterrupt


def fail_inside(model: nn.Module, optimizer: Unlucky) -> None:  # noqa: ARG001
    optimizer.should_raise = True
    optimizer.step()


def fail_in_another_hook(model: nn.Module, optimizer: Unlucky) -> None:  # noqa: ARG001
    optimizer.register_step_post_hook(raise_interrupt)
    optimizer._optimizer_step_post_hooks.move_to_end(next(reversed(optimizer._optimizer_step_post_hooks)), last=False)
    optimizer.step()


def fail_in_a_closure(model: nn.Module, optimizer: Unlucky) -> None:
    def closure() -> torch.Tensor:
        backward(model, 0)
        with torch.no_grad():
            model.get_submodule("0").weight.add_(1)  # as a line search does
        raise KeyboardInterrupt

    optimizer.step(closure)


def fail_in_a_scaler(model: nn.Module, optimizer: Unlucky) -> None:
    scaler = torch.amp.GradScaler("cpu")
    model.zero_grad()
    backward(model, 0, scaler.scale(torch.ones(())))
    optimizer.should_raise = True
    scaler.step(optimizer)


FAILURES = [fail_inside, fail_in_another_hook, fail_in_a_closure, fail_in_a_scaler]


def unlucky(config: dict[str, Any]) -> tuple[nn.Sequential, Unlucky, PytorchPruner]:
    model = mlp()
    optimizer = Unlucky(model.parameters())
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    train(model, optimizer, range(5))
    return model, optimizer, pruner


def train(model: nn.Module, optimizer: Any, steps: Any) -> None:
    for step in steps:
        model.zero_grad()
        backward(model, step)
        optimizer.step()


@pytest.mark.parametrize("fail", FAILURES)
def test_with_leaves_zeros(fail: Callable[[nn.Module, Unlucky], None]) -> None:
    model, optimizer, pruner = unlucky(CONFIG)
    with pytest.raises(KeyboardInterrupt), pruner:
        fail(model, optimizer)
    assert revived(pruner) == []
    assert pruned_units(pruner) > 0
    assert not pruner.is_active


@pytest.mark.parametrize("fail", FAILURES)
def test_close_leaves_zeros(fail: Callable[[nn.Module, Unlucky], None]) -> None:
    model, optimizer, pruner = unlucky(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        fail(model, optimizer)
    assert revived(pruner) != []
    pruner.close()
    assert revived(pruner) == []


@pytest.mark.parametrize("fail", FAILURES)
def test_a_run_can_be_finalized_after_an_interrupt(fail: Callable[[nn.Module, Unlucky], None]) -> None:
    model, optimizer, pruner = unlucky(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        fail(model, optimizer)
    pruner.finalize()
    assert revived(pruner) == []


def test_a_close_that_has_nothing_to_do_leaves_the_model_as_it_is() -> None:
    trial = begin().train(range(9))
    trial.pruner.finalize()
    trial.train(range(9, 12))
    trial.pruner.close()
    assert revived(trial.pruner) != []


def test_a_close_between_steps_leaves_a_checkpoint_that_was_loaded_as_it_is() -> None:
    trial = begin().train(range(3))
    best = {name: value.clone() for name, value in trial.model.state_dict().items()}
    with trial.train(range(3, 9)).pruner:
        trial.model.load_state_dict(best)
    assert all(torch.equal(value, best[name]) for name, value in trial.model.state_dict().items())


class Adjusted(torch.optim.SGD):
    """Changes the weights once more after the step of its base class, and then raises, if told to."""

    should_raise = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for weight in self.param_groups[0]["params"]:
            weight.add_(0.01)
        if self.should_raise:
            raise KeyboardInterrupt
        return loss


@pytest.mark.parametrize("end", [PytorchPruner.close, PytorchPruner.finalize])
def test_a_step_around_the_step_of_its_base_class(end: Callable[[PytorchPruner], Any]) -> None:
    model = mlp()
    optimizer = Adjusted(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
    train(model, optimizer, range(9))
    assert (pruner.step, revived(pruner)) == (9, [])
    optimizer.should_raise = True
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, [9])
    assert revived(pruner) != []
    end(pruner)
    assert revived(pruner) == []


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_step_in_the_closure_of_another_optimizer(*, is_interrupted: bool) -> None:
    model = mlp()
    outer, inner = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2:]))
    pruner = secateur.prepare(model, CONFIG, optimizer=[outer, inner])
    interrupts = [4] if is_interrupted else []

    def closure() -> float:
        model.zero_grad()
        backward(model, pruner.step)
        inner.step()
        if interrupts == [pruner.step]:
            interrupts.clear()
            raise KeyboardInterrupt
        return 0.0

    for step in range(10):
        assert pruner.step == step
        if step in interrupts:
            with pytest.raises(KeyboardInterrupt):
                outer.step(closure)
        outer.step(closure)
        assert revived(pruner) == []
    assert pruner.finalize().is_complete


def test_announced_steps() -> None:
    model = mlp()
    hidden = OPTIMIZERS["adamw"](model.parameters())
    pruner = secateur.prepare(model, CONFIG)

    def loop() -> None:
        with pruner:
            for step in range(6):
                model.zero_grad()
                backward(model, step)
                pruner.before_step()
                hidden.step()
                if step == 5:
                    raise KeyboardInterrupt
                pruner.after_step()

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert revived(pruner) == []
    assert pruned_units(pruner) > 0


def operations(config: dict[str, Any]) -> int:
    """Operations of the step that updates the masks."""
    trial = begin(config).train(range(4))
    backward(trial.model, 4)
    with InterruptAt(1 << 30) as mode:
        trial.optimizer.step()
    return (1 << 30) - mode.left


@pytest.mark.parametrize("name", CONFIGS)
def test_an_interrupt_at_any_operation_of_a_step(name: str) -> None:
    """At every ninth; the attack `interrupted_training` picks any."""
    config = CONFIGS[name]
    expected = pruned_units(begin(config).train(range(10)).pruner)
    for number in range(0, operations(config), 9):
        trial = begin(config).train(range(4))
        model, optimizer, pruner = trial
        before = pruner.masks
        with pytest.raises(KeyboardInterrupt), InterruptAt(number):
            optimizer.step()
        if number % 2:
            pruner.close()
            assert revived(pruner) == [], number
            assert hooks(optimizer) == 0
            continue
        train(model, optimizer, range(4, 10))
        assert pruner.step in (10, 11), number
        assert all((mask <= before[layer]).all() for layer, mask in pruner.masks.items())
        report = pruner.finalize()
        assert report.is_complete
        assert sum(layer.pruned_units for layer in report.layers) == expected, number


def test_a_score_that_fails_leaves_the_update_due() -> None:
    trial = begin({**CONFIG, "layers": {"2": {"target_sparsity": 0.5}}, "end_step": 5}, optimizer="sgd").train(range(4))
    backward(trial.model, 4)
    kept = trial.model[2].weight.grad.clone()
    trial.model[2].weight.grad.fill_(torch.nan)
    state = trial.pruner.state_dict()
    with pytest.raises(secateur.SecateurError, match="layer '2'"):
        trial.optimizer.step()
    assert torch.equal(trial.pruner.state_dict()["runs"][0]["scores"]["0"], state["runs"][0]["scores"]["0"])
    trial.model[2].weight.grad = kept
    trial.optimizer.step()
    assert trial.pruner.step == 5
    assert trial.pruner.finalize().is_complete


def test_an_error_in_the_last_update_leaves_it_due() -> None:
    wrong = []

    def schedule(initial: float, target: float, progress: float) -> float:
        return 7.0 if wrong else initial + (target - initial) * progress

    trial = begin({**CONFIG, "sparsity_decay_type": schedule}).train(range(4))
    wrong.append(1)
    with pytest.raises(secateur.SecateurError):
        trial.train([4])
    assert (trial.pruner.step, revived(trial.pruner)) == (4, [])
    wrong.clear()
    trial.train([4])
    assert trial.pruner.step == 5
    assert pruned_units(trial.pruner) == 96


def test_a_weight_that_cannot_be_zeroed_is_named_and_the_others_are() -> None:
    model, optimizer, pruner = unlucky(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        fail_inside(model, optimizer)
    model[0].weight.data = torch.ones(2, 2)
    with pytest.raises(
        LayerError, match=r"layer '0': its weight now has shape \(2, 2\), but had \(32, 16\) when pruning"
    ):
        pruner.close()
    assert hooks(optimizer) == 0
    assert not model[2].weight[~pruner.masks["2"]].count_nonzero()


def test_what_close_cannot_do_is_a_note_of_the_exception() -> None:
    model, optimizer, pruner = unlucky(CONFIG)

    def loop() -> None:
        with pruner:
            try:
                fail_inside(model, optimizer)
            finally:
                model[0].weight.data = torch.ones(2, 2)

    with pytest.raises(KeyboardInterrupt) as caught:
        loop()
    assert "layer '0': its weight now has shape (2, 2)" in caught.value.__notes__[0]
    with pytest.raises(StateError, match="already been finalized or closed"):
        pruner.finalize()
