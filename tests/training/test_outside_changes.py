"""Weights that change outside of the steps that a pruner sees."""

import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import LayerError, StateError, UnsupportedModelError
from secateur.training.pytorch.wrappers import changes_weights, unwrap_optimizer
from tiny_models import mlp
from training.models import CONFIG, backward, begin, hooks, revived

MAGNITUDE = {**CONFIG, "criterion": "magnitude", "end_step": 5}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization in its usual form: it is not stepped itself."""

    def __init__(self, weights: Any, base: Any, *, attribute: str = "base_optimizer", **settings: Any) -> None:
        super().__init__(weights, settings)
        setattr(self, attribute, base(self.param_groups, **settings))
        self.base = getattr(self, attribute)
        self.param_groups = self.base.param_groups

    @property
    def weights(self) -> Iterator[torch.Tensor]:
        return (weight for group in self.param_groups for weight in group["params"])

    @torch.no_grad()
    def first_step(self) -> None:
        for weight in self.weights:
            self.state[weight]["old"] = weight.clone()
            weight.add_(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def second_step(self) -> None:
        for weight in self.weights:
            weight.copy_(self.state[weight]["old"])
        self.base.step()
        self.base.zero_grad()


class Lookahead(torch.optim.Optimizer):
    """Moves weights to an average after the step of another optimizer."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.fast = inner
        self.slow = {weight: weight.detach().clone() for group in inner.param_groups for weight in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.fast.step(closure)
        for weight, slow in self.slow.items():
            weight.copy_(slow.lerp_(weight, 0.5))


@pytest.mark.parametrize("attribute", ["base_optimizer", "optimizer", "inner"])
def test_zeros_hold_in_both_passes_of_sharpness_aware_minimization(attribute: str, caplog: Any) -> None:
    model = mlp()
    optimizer = SAM(model.parameters(), torch.optim.AdamW, attribute=attribute, lr=0.01)
    pruner = secateur.prepare(model, MAGNITUDE, optimizer=optimizer)
    for step in range(7):
        for half in (optimizer.first_step, optimizer.second_step):
            assert revived(pruner) == []
            backward(model, step)
            half()
    assert pruner.step == 7
    assert pruner.finalize().unit_sparsity == 0.75
    assert warnings_of(caplog) == []


def test_zeros_hold_after_an_optimizer_around_another_one() -> None:
    model = mlp()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    pruner = secateur.prepare(model, MAGNITUDE, optimizer=optimizer)
    for step in range(7):
        model.zero_grad()
        backward(model, step)
        optimizer.step()
        assert revived(pruner) == []
    assert pruner.step == 7
    assert pruner.finalize().unit_sparsity == 0.75
    assert (hooks(optimizer), hooks(optimizer.fast)) == (0, 0)
    backward(model, 7)
    assert all(bool((model[index].weight.grad != 0).any(1).all()) for index in (4,))


def test_a_model_does_not_keep_the_pruner_of_a_wrapper_alive() -> None:
    model = mlp()
    secateur.prepare(model, MAGNITUDE, optimizer=SAM(model.parameters(), torch.optim.SGD, lr=0.1))
    assert secateur.prepare(model, MAGNITUDE, optimizer=torch.optim.SGD(model.parameters())).is_active


def test_an_optimizer_of_other_weights_inside_an_optimizer_does_not_make_its_steps() -> None:
    class Mixed(torch.optim.SGD):
        def __init__(self, first: list[Any], second: list[Any]) -> None:
            super().__init__([*first, *second], lr=0.1)
            self.other = torch.optim.Adam(second)

    model = mlp()
    optimizer = Mixed([model[0].weight, model[2].weight], [model[4].weight])
    assert unwrap_optimizer(optimizer) == [optimizer]
    pruner = secateur.prepare(model, MAGNITUDE, optimizer=optimizer)
    backward(model, 0)
    optimizer.step()
    assert pruner.step == 1


def test_wrappers_of_training_frameworks_change_no_weights() -> None:
    class Thin(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    inner = torch.optim.SGD(mlp().parameters())
    assert unwrap_optimizer(Thin(inner))[-1] is inner
    inner.wrapper = Thin(inner)  # and back
    assert unwrap_optimizer(inner.wrapper)[-1] is inner
    assert unwrap_optimizer(inner) == [inner]
    assert not changes_weights(Thin(inner))
    assert changes_weights(Lookahead(inner))
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.optim\.Optimizer, found dict"):
        unwrap_optimizer({})


UNSEEN = "The weights change, but no step of the optimizer has been seen, so nothing is pruned."


@pytest.mark.parametrize(
    ("passes_optimizer", "hint"),
    [(True, "secateur.prepare got SGD; pass the optimizer whose step"), (False, "Call before_step and after_step of")],
)
def test_steps_that_are_not_seen_are_reported_in_the_third_pass(passes_optimizer: bool, hint: str, caplog: Any) -> None:
    model = mlp()
    given, used = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    pruner = secateur.prepare(model, {**MAGNITUDE, "start_step": 1}, given if passes_optimizer else None)
    for step in range(5):
        backward(model, step)
        assert len(warnings_of(caplog)) == (step >= 2)
        used.step()
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{UNSEEN} {hint}")
    pruner.close()


@pytest.mark.parametrize("closure", [False, True])
def test_usual_loops_are_not_suspected(closure: bool, caplog: Any) -> None:
    """Gradient accumulation, perturbed weights in one pass, and several evaluations in a closure."""
    trial = begin(MAGNITUDE, optimizer="sgd")
    for step in range(3):
        for _ in range(3):
            backward(trial.model, step)
        with torch.no_grad():
            trial.model[0].weight.mul_(1.1)
        backward(trial.model, step)
        trial.optimizer.step((lambda step=step: backward(trial.model, step)) if closure else None)
    assert warnings_of(caplog) == []


def test_watched_models_are_copied_saved_and_compiled_as_usual() -> None:
    model = mlp()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    pruner = secateur.prepare(model, MAGNITUDE, optimizer=optimizer)
    other = copy.deepcopy(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    for copied in (other, torch.load(io.BytesIO(stored.getvalue()), weights_only=False)):
        backward(copied, 0)
        assert all(weight._post_accumulate_grad_hooks is None for weight in copied.parameters())
    pruner.close()
    assert all(not weight._post_accumulate_grad_hooks for weight in model.parameters())


LOADED = "Pruned weights of '0', '2' were changed between two steps, such as by loading a checkpoint, and are set to"


@pytest.mark.parametrize("way", ["load_state_dict", "memory"])
def test_overwritten_zeros_are_restored_at_the_next_step_with_a_warning(way: str, caplog: Any) -> None:
    trial = begin(MAGNITUDE)
    dense = copy.deepcopy(trial.model.state_dict())
    trial.train(range(6))
    for _ in range(2):
        if way == "load_state_dict":
            trial.model.load_state_dict(dense)
        else:
            for name, values in dense.items():
                trial.model.get_parameter(name).data = values.clone()
        assert revived(trial.pruner) == ["0", "2"]
        trial.train(range(6, 8))
        assert revived(trial.pruner) == []
    assert [message.startswith(LOADED) for message in warnings_of(caplog)] == [True]
    assert trial.pruner.finalize().unit_sparsity == 0.75


@pytest.mark.parametrize("config", [MAGNITUDE, {"kind": "pattern_lock"}])
def test_a_pruned_checkpoint_that_is_loaded_after_prepare_is_refused_at_the_first_step(config: dict[str, Any]) -> None:
    checkpoint = begin(MAGNITUDE).train(range(6)).model.state_dict()
    trial = begin(config)
    trial.model.load_state_dict(checkpoint)
    message = (
        r"layer '0': \d\d\.\d% of its weights have become zero since secateur.prepare, .* Load the checkpoint before"
    )
    with pytest.raises(StateError, match=message):
        trial.train([0])


def test_a_pruned_checkpoint_with_the_state_of_its_pruner_is_accepted(caplog: Any) -> None:
    first = begin(MAGNITUDE).train(range(3))
    for is_state_first in (True, False):
        trial = begin(MAGNITUDE)
        load = [
            lambda trial=trial: trial.pruner.load_state_dict(first.pruner.state_dict()),
            lambda trial=trial: trial.model.load_state_dict(first.model.state_dict()),
        ]
        for call in load if is_state_first else load[::-1]:
            call()
        trial.train(range(3, 6))
        assert trial.pruner.finalize().unit_sparsity == 0.75
    assert warnings_of(caplog) == []


def test_averaged_weights_in_place_of_the_model_for_evaluation_are_no_change(caplog: Any) -> None:
    trial = begin(MAGNITUDE).train(range(3))
    for step in range(3, 6):
        before = copy.deepcopy(trial.model.state_dict())
        with torch.no_grad():
            for weight in trial.model.parameters():
                weight.normal_()
        trial.model.load_state_dict(before)
        trial.train([step])
    assert warnings_of(caplog) == []


def test_zeros_hold_after_the_step_of_another_optimizer() -> None:
    trial = begin(MAGNITUDE).train(range(3))
    other = torch.optim.Adam(trial.model.parameters(), lr=0.1)
    for step in range(3):
        backward(trial.model, step)
        other.step()
        assert revived(trial.pruner) == []
    assert trial.pruner.step == 3
    trial.pruner.close()
    other.step()
    assert bool((trial.model[0].weight != 0).all())


def test_optimizers_of_other_models_are_left_alone() -> None:
    trial = begin(MAGNITUDE).train(range(3))
    trial.model[0] = nn.Linear(16, 32)
    other = mlp()
    backward(other, 0)
    torch.optim.SGD(other.parameters()).step()
    trial.pruner.close()


def replace_parameter(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def convert_to_new_parameters(model: nn.Sequential) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("replace", [replace_parameter, convert_to_new_parameters])
@pytest.mark.parametrize("renews_optimizer", [False, True])
def test_a_replaced_parameter_is_named_at_the_next_step(replace: Any, renews_optimizer: bool) -> None:
    trial = begin(MAGNITUDE).train(range(2))
    replace(trial.model)
    optimizer = torch.optim.SGD(trial.model.parameters()) if renews_optimizer else trial.optimizer
    backward(trial.model, 2)
    with pytest.raises(LayerError, match="layer '0': its weight is not the parameter that was pruned"):
        optimizer.step()
    trial.pruner.close()
