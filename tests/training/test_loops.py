"""Training loops that go about it in another way."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import LayerError, ScoreError, StateError
from tiny_models import mlp
from training.models import CONFIG, OPTIMIZERS, backward, begin, revived


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, closure: bool) -> None:
    """A step whose gradients are those of its batch, calculated within it or before."""

    def one_batch() -> float:
        model.zero_grad()
        backward(model, step)
        return 0.0

    if closure:
        optimizer.step(one_batch)
    else:
        one_batch()
        optimizer.step()


def run(config: dict[str, Any], *, closure: bool) -> dict[str, torch.Tensor]:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    for step in range(9):
        train_step(model, optimizer, step, closure=closure)
    pruner.finalize()
    return pruner.masks


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum", "movement"])
def test_gradients_of_a_closure_are_those_of_its_batch(criterion: str) -> None:
    config = {**CONFIG, "criterion": criterion}
    expected = run(config, closure=False)
    assert all(torch.equal(mask, expected[layer]) for layer, mask in run(config, closure=True).items())


def test_closure_that_is_called_often_counts_once() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    pruner = secateur.prepare(model, {**CONFIG, "end_step": 3}, optimizer=optimizer)
    for step in range(3):

        def one_batch(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            backward(model, step)
            return torch.tensor(1.0)

        optimizer.step(closure=one_batch)
    assert pruner.step == 3
    assert pruner.finalize().unit_sparsity == 0.75


def fit_with_line_search(*, prepared: bool) -> float:
    """Fit a model with zeros by L-BFGS; without a pruner, with the gradients of the zeros set to zero."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 16), torch.randn(64, 4)
    model = mlp()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    zeros = {name: weight == 0 for name, weight in model.named_parameters() if weight.dim() == 2}
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe")
    pruner = secateur.prepare(model, {"kind": "pattern_lock"}, optimizer=optimizer) if prepared else None

    def evaluate() -> torch.Tensor:
        assert not any(model.get_parameter(name)[where].any() for name, where in zeros.items())
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        if pruner is None:
            for name, where in zeros.items():
                model.get_parameter(name).grad[where] = 0
        return loss

    for _ in range(5):
        optimizer.step(evaluate)
    return float(evaluate().detach())


def test_line_search_sees_the_pruned_model_at_every_evaluation() -> None:
    expected = fit_with_line_search(prepared=False)
    assert expected < 0.7
    assert fit_with_line_search(prepared=True) == pytest.approx(expected, rel=1e-3)


class Momentum(torch.optim.SGD):
    """Moves weights before it evaluates, as Nesterov's method is sometimes written."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            weight.add_(0.1)
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


def test_zeros_hold_inside_any_closure() -> None:
    model = mlp()
    optimizer = Momentum(model.parameters(), lr=0.1, momentum=0.9)
    pruner = secateur.prepare(model, {**CONFIG, "criterion": "magnitude", "end_step": 3}, optimizer=optimizer)

    def evaluate() -> float:
        assert revived(pruner) == []
        optimizer.zero_grad()
        backward(model, 0)
        return 0.0

    for _ in range(5):
        optimizer.step(evaluate)
    assert pruner.finalize().unit_sparsity == 0.75


def test_weight_of_two_optimizers_is_zero_after_either() -> None:
    model = mlp()
    first, second = (OPTIMIZERS["sgd"](model.parameters()) for _ in range(2))
    pruner = secateur.prepare(model, {**CONFIG, "end_step": 1}, optimizer=[first, second])
    for step in range(4):
        for optimizer in (first, second):
            backward(model, step)
            optimizer.step()
            assert all(not model.get_submodule(name).weight[~mask].any() for name, mask in pruner.masks.items())
    assert pruner.step == 4
    assert pruner.finalize().unit_sparsity == 0.75


class Wrapper(torch.optim.Optimizer):
    """As training frameworks wrap an optimizer: of its type, but without its insides."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_wrapped_optimizer() -> None:
    model = mlp()
    wrapper = Wrapper(OPTIMIZERS["sgd"](model.parameters()))
    pruner = secateur.prepare(model, CONFIG, optimizer=wrapper)
    for step in range(9):
        backward(model, step)
        wrapper.step()
    assert pruner.finalize().is_complete


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum", "taylor"])
def test_nan_gradients_are_found_before_the_step(criterion: str) -> None:
    trial = begin({**CONFIG, "criterion": criterion, "end_step": None}, optimizer="sgd")
    backward(trial.model, 0)
    trial.model[2].weight.grad[3, 3] = torch.nan
    before = {name: weight.clone() for name, weight in trial.model.state_dict().items()}
    with pytest.raises(ScoreError, match="layer '2': scores must be numbers, found nan"):
        trial.optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in trial.model.state_dict().items())
    trial.model.zero_grad()
    backward(trial.model, 1)
    trial.optimizer.step()
    assert trial.pruner.finalize().is_complete


def test_nan_weights_are_found_at_the_end() -> None:
    trial = begin().train(range(9))
    with torch.no_grad():
        trial.model[2].weight[trial.pruner.masks["2"]] = torch.nan
    with pytest.raises(StateError, match="2: its weights contain nan"):
        trial.pruner.finalize()


def test_layer_that_has_left_the_model() -> None:
    trial = begin().train(range(9))
    trial.model[2] = nn.Linear(32, 16)
    with pytest.raises(StateError, match="2: its weight is not the parameter"):
        trial.pruner.finalize()


def test_weights_without_values() -> None:
    with torch.device("meta"):
        model = mlp()
    with pytest.raises(LayerError, match="layer '0': its weight is on the meta device"):
        secateur.prepare(model, CONFIG, optimizer=OPTIMIZERS["sgd"](model.parameters()))


def test_state_comes_too_late() -> None:
    trial = begin().train(range(9))
    state = trial.pruner.state_dict()
    trial.pruner.close()
    with pytest.raises(StateError, match="already been finalized or closed"):
        trial.pruner.load_state_dict(state)


class Derived(torch.optim.SGD):
    """Makes the step of its base class, around which torch calls the hooks once more."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_within_a_step_counts_once(closure: bool) -> None:
    pruners = []
    for kind in (torch.optim.SGD, Derived):
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.1)
        pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
        for step in range(5):
            train_step(model, optimizer, step, closure=closure)
        pruners.append(pruner)
    assert pruners[1].step == 5
    scores = [pruner.state_dict()["runs"][0]["scores"] for pruner in pruners]
    assert all(torch.equal(score, scores[1][name]) for name, score in scores[0].items())
