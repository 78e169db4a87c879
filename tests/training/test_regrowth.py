"""RigL and SET with torch: what is exchanged at an update, and what is not touched."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from masking.test_regrowth import exchange_units
from secateur.errors import ConfigError, LayerError, ScoreError
from secateur.training.pytorch.run import PytorchRun
from tiny_models import mlp
from training.models import OPTIMIZERS, Trial, backward, begin, equal_states, revived
from training.test_outside_changes import SAM

UPDATES = (2, 5, 8, 10)
RIGL: dict[str, Any] = {
    "kind": "rigl",
    "pattern": "1x1",
    "target_sparsity": 0.75,
    "start_step": 2,
    "end_step": 10,
    "pruning_frequency": 3,
}
GROUPS = {"pattern": "2:4", "target_sparsity": None}


def count_kept(trial: Trial) -> list[int]:
    return [int(mask.sum()) for mask in trial.pruner.masks.values()]


@pytest.mark.parametrize("kind", ["rigl", "set"])
@pytest.mark.parametrize(
    "config", [{}, GROUPS, {"pattern": "4x1"}, {"pattern": "1x4"}, {"pattern": "1xchannel"}, {"pattern": "channelx1"}]
)
def test_the_number_of_kept_units_never_changes(kind: str, config: dict[str, Any]) -> None:
    trial = begin({**RIGL, "kind": kind, "regrow_fraction": 0.5, **config})
    expected, before = count_kept(trial), trial.pruner.masks
    units = [layer.pruned_units for layer in trial.pruner.report().layers]
    changes = []

    def check(step: int) -> None:
        nonlocal before
        assert revived(trial.pruner) == [], step
        assert count_kept(trial) == expected, step
        assert [layer.pruned_units for layer in trial.pruner.report().layers] == units
        masks = trial.pruner.masks
        if any(not torch.equal(mask, before[name]) for name, mask in masks.items()):
            changes.append(step)
        before = masks

    report = trial.train(range(12), check).pruner.finalize()
    # Of few units, those that come back can be those that went.
    assert changes == [*UPDATES[:-1]] if sum(units) > 100 else changes[:1] == [*UPDATES[:1]]
    assert report.is_complete
    total = sum(layer.units for layer in report.layers)
    assert sum(layer.pruned_units for layer in report.layers) == round((0.5 if config == GROUPS else 0.75) * total)


@pytest.mark.parametrize(
    ("start", "sums"),
    [(2, {2: (1, 2), 5: (3, 4, 5), 8: (6, 7, 8)}), (6, {6: (4, 5, 6), 9: (7, 8, 9)})],
)
def test_an_update_reads_the_weights_after_the_step_and_the_sums_of_the_gradients_before(
    start: int, sums: dict[int, tuple[int, ...]]
) -> None:
    """The gradients of all steps since the last update count, and of `pruning_frequency` steps before the first."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, {**RIGL, "start_step": start}, optimizer)
    gradients: dict[int, dict[str, Any]] = {}
    for step in range(1, 10):
        before = pruner.masks
        optimizer.zero_grad(set_to_none=False)
        backward(model, step)
        gradients[step] = {name: model.get_submodule(name).weight.grad.clone() for name in before}
        weights = {
            name: torch.add(model.get_submodule(name).weight.detach(), gradients[step][name], alpha=-0.1) * mask
            for name, mask in before.items()
        }
        optimizer.step()
        for name, mask in before.items():
            expected = mask
            if step in sums:
                count = round(0.3 / 2 * (1 + np.cos(np.pi * step / 10)) * int(mask.sum()))
                growth = sum(gradients[one][name] for one in sums[step]).abs()
                scores = weights[name].abs()
                flags = exchange_units(*(array.flatten().tolist() for array in (mask, scores, growth)), count)
                expected = torch.tensor(flags).view_as(mask)
                assert not torch.equal(mask, expected)
            assert torch.equal(pruner.masks[name], expected), step
            # What just came back is zero, what stays has its value.
            assert torch.equal(model.get_submodule(name).weight, weights[name] * expected)


def test_a_step_that_fails_does_not_add_its_gradients() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    expected, trial = begin(RIGL).train(range(4)), begin(RIGL).train(range(3))
    hook = trial.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError):
        trial.train(range(9, 10))
    hook.remove()
    trial.train(range(3, 4))
    sums = [run["gradients"] for run in trial.pruner.state_dict()["runs"]]
    assert equal_states(sums, [run["gradients"] for run in expected.pruner.state_dict()["runs"]])
    assert sums[0].keys() == {"0", "2"}
    assert all(total.any() for total in sums[0].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_do_not_share_the_memory_of_gradients(dtype: torch.dtype) -> None:
    trial = begin({**RIGL, "start_step": 3}, model=mlp(dtype=dtype), optimizer="sgd")
    backward(trial.model, 0)
    weight = trial.model[0].weight
    first, second = weight.grad.clone().float(), weight.grad.clone().mul_(1.1).float()
    trial.optimizer.step()
    weight.grad.mul_(1.1)
    trial.optimizer.step()
    total = trial.pruner.state_dict()["runs"][0]["gradients"]["0"]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, first + second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("total", "problem"),
    [
        (torch.zeros(2, 2), r"gradients of '0' must be float32 of shape \(32, 16\), found float32 of shape \(2, 2\)"),
        (torch.full((32, 16), torch.nan), "scores of '0' must be numbers, found nan"),
    ],
)
def test_damaged_sums_are_refused(total: torch.Tensor, problem: str) -> None:
    state = begin(RIGL).train(range(3)).pruner.state_dict()
    state["runs"][0]["gradients"]["0"] = total
    with pytest.raises(secateur.SecateurError, match=problem):
        begin(RIGL).pruner.load_state_dict(state)


def test_a_state_without_sums_resumes_with_the_gradients_after_it() -> None:
    trial = begin(RIGL).train(range(3))
    state = trial.pruner.state_dict()
    del state["runs"][0]["gradients"]  # as in a state of an earlier version
    trial.pruner.load_state_dict(state)
    assert trial.pruner.state_dict()["runs"][0]["gradients"] == {}
    assert trial.train(range(3, 10)).pruner.finalize().is_complete


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exchanged_weights_have_a_fresh_state_in_the_optimizer(optimizer: str) -> None:
    trial = begin({**RIGL, "kind": "set"}, optimizer=optimizer)
    trial.train(range(1))
    before = trial.pruner.masks
    trial.train(range(1, 2))
    for name, mask in trial.pruner.masks.items():
        changed = mask != before[name]
        weight = trial.model.get_submodule(name).weight
        states = [value for value in trial.optimizer.state[weight].values() if value.shape == weight.shape]
        assert changed.any()
        assert states
        for state in states:
            assert not state[changed].any()
            assert state[~changed & mask].any()
    other = trial.optimizer.state[trial.model[4].weight]
    assert all(bool(value.any()) for value in other.values() if value.dim() > 0)


def test_what_is_not_exchanged_trains_as_without_an_update() -> None:
    """A run whose updates exchange nothing is one with fixed masks."""
    frozen = begin({**RIGL, "regrow_fraction": 1e-6})
    masks = frozen.pruner.masks
    frozen.train(range(12))
    assert all(torch.equal(mask, masks[name]) for name, mask in frozen.pruner.masks.items())
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for name, mask in masks.items():
        model.get_submodule(name).weight.data *= mask
    lock = secateur.prepare(model, {"kind": "pattern_lock"}, optimizer)
    Trial(model, optimizer, lock).train(range(12))
    assert equal_states(model.state_dict(), frozen.model.state_dict())


def test_a_layer_that_the_user_froze_keeps_its_mask() -> None:
    trial = begin(RIGL)
    trial.pruner.plan.patterns[0].keep_mask_layers["0"] = "good as it is"
    before = trial.pruner.masks
    trial.train(range(12))
    same = [torch.equal(mask, before[name]) for name, mask in trial.pruner.masks.items()]
    assert same == [True, False]


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_a_layer_that_is_frozen_while_weights_regrow_is_refused(kind: str) -> None:
    trial = begin({**RIGL, "kind": kind}).train(range(3))
    masks = trial.pruner.masks
    weight = trial.model[2].weight.requires_grad_(requires_grad=False)
    weight.grad = None
    with pytest.raises(LayerError, match=r"layer '2': its weight must train with kind='.* until step 10"):
        trial.train(range(3, 6))
    assert all(torch.equal(mask, masks[name]) for name, mask in trial.pruner.masks.items())
    weight.requires_grad_()
    assert trial.train(range(4, 12)).pruner.finalize().is_complete


def test_several_optimizers_closures_and_announced_steps_give_the_same_masks() -> None:
    def train_twice(model: nn.Sequential) -> Any:
        first, rest = torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[2:].parameters(), 0.1)
        pruner = secateur.prepare(model, RIGL, [first, rest])
        for step in range(11):
            model.zero_grad()
            backward(model, step)
            first.step()
            rest.step()
        return pruner

    def train_by_closure(model: nn.Sequential) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner = secateur.prepare(model, RIGL, optimizer)
        for step in range(11):

            def closure(step: int = step) -> None:
                model.zero_grad()
                backward(model, step)

            optimizer.step(closure)
        return pruner

    def train_by_hand(model: nn.Sequential) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner = secateur.prepare(model, RIGL)
        for step in range(11):
            model.zero_grad()
            backward(model, step)
            pruner.before_step()
            optimizer.step()
            pruner.after_step()
        with pytest.raises(secateur.SecateurError, match="after_step was called without before_step"):
            pruner.after_step()
        return pruner

    ways: list[Callable[[nn.Sequential], Any]] = [train_twice, train_by_closure, train_by_hand]
    first, *others = [way(mlp()).masks for way in ways]
    assert all(torch.equal(mask, other[name]) for other in others for name, mask in first.items())


def test_an_error_at_an_update_changes_no_mask_and_the_update_follows_later() -> None:
    trial = begin(RIGL).train(range(1))
    before = trial.pruner.masks
    trial.model.zero_grad()
    backward(trial.model, 1)
    trial.model[2].weight.grad[~before["2"]] = torch.nan
    with pytest.raises(ScoreError, match="layer '2': scores must be numbers, found nan"):
        trial.optimizer.step()
    assert trial.pruner.step == 1
    assert all(torch.equal(mask, before[name]) for name, mask in trial.pruner.masks.items())
    assert revived(trial.pruner) == []


def test_gradients_before_the_last_update_are_not_used() -> None:
    """A layer that takes no part in some steps, such as an expert, regrows by the gradients of the others."""
    trial = begin(RIGL).train(range(2))
    masks = trial.pruner.masks

    def train_without(step: int) -> None:
        trial.model.zero_grad()
        backward(trial.model, step)
        trial.model[2].weight.grad = None
        trial.optimizer.step()

    train_without(2)
    train_without(3)
    with pytest.raises(ScoreError, match=r"layer '2': kind='rigl' regrows by gradients, but none reached .* step 5"):
        train_without(4)
    assert all(torch.equal(mask, masks[name]) for name, mask in trial.pruner.masks.items())
    trial.train(range(4, 7))
    train_without(7)
    assert trial.pruner.step == 8
    assert not torch.equal(trial.pruner.masks["2"], masks["2"])


def test_an_interrupted_update_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, trial = begin(RIGL).train(range(12)), begin(RIGL).train(range(1))
    original, calls = PytorchRun.set_masks, []

    def interrupt(run: PytorchRun, masks: Any) -> None:
        calls.append(masks)
        if len(calls) == 1:
            original(run, {"0": masks["0"]})
            raise KeyboardInterrupt
        original(run, masks)

    monkeypatch.setattr(PytorchRun, "set_masks", interrupt)
    trial.model.zero_grad()
    backward(trial.model, 1)
    with pytest.raises(KeyboardInterrupt):
        trial.optimizer.step()
    assert trial.pruner.sparsity == 0.75  # completes the update
    trial.train(range(2, 12))
    assert len(calls) > 1
    assert equal_states(trial.pruner.state_dict(), expected.pruner.state_dict())
    assert equal_states(trial.optimizer.state_dict(), expected.optimizer.state_dict())
    assert equal_states(trial.model.state_dict(), expected.model.state_dict())


def test_layers_can_have_other_kinds() -> None:
    config = {**RIGL, "target_sparsity": 0.5, "layers": {"2": {"kind": "iterative", "pattern": "4x1"}}}
    trial = begin(config)
    assert [layer.pruned_weights for layer in trial.pruner.report().layers] == [256, 0]
    trial.train(range(10))
    assert [layer.pruned_weights for layer in trial.pruner.finalize().layers] == [256, 256]


def test_resumed_masks_whose_counts_belong_to_other_layers_are_refused() -> None:
    trial = begin(RIGL).train(range(3))
    state = trial.pruner.state_dict()
    run = state["runs"][0]
    for name, kept in (("0", True), ("2", False)):
        mask = run["masks"][name].clone()
        place = int((mask != kept).flatten().nonzero()[0])
        mask.view(-1)[place] = kept
        run["masks"][name], run["progress"]["keep"][name] = mask, mask.flatten().clone()
    with pytest.raises(secateur.SecateurError, match=r"units of '0' must be pruned, found"):
        begin(RIGL).pruner.load_state_dict(state)


def test_what_a_run_cannot_do_is_said_before_it_changes_anything() -> None:
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"criterion must not need gradients with kind='rigl', found 'snip'"):
        secateur.prepare(model, {**RIGL, "criterion": "snip"}, optimizer)
    with pytest.raises(ConfigError, match=r"kind='rigl' needs the gradients .* SAM"):
        secateur.prepare(model, RIGL, SAM(model.parameters(), torch.optim.SGD))
    with pytest.raises(ConfigError, match=r"kind='set' regrows weights while the model trains"):
        secateur.prune(model, {**RIGL, "kind": "set"})
    assert equal_states(model.state_dict(), before)
    assert secateur.prepare(model, {**RIGL, "kind": "set"}, SAM(model.parameters(), torch.optim.SGD)).sparsity == 0.75


def test_a_run_that_ended_early_has_its_target_but_not_its_final_masks() -> None:
    report = begin(RIGL).train(range(4)).pruner.finalize()
    assert not report.is_complete
    assert report.unit_sparsity == 0.75
    assert "Masks would still have changed: stopped at step 4 of 10." in str(report)


def test_the_plan_says_what_each_layer_keeps() -> None:
    plan = secateur.plan(mlp(), RIGL)
    pruned = {layer.name: layer.pruned_weights / layer.weights for layer in begin(RIGL).pruner.report().layers}
    assert {layer.name: layer.sparsity_range for layer in plan.layers if layer.is_pruned} == {
        name: (share, share) for name, share in pruned.items()
    }
    assert "Every 3 steps from step 2 to 10, units with the lowest magnitude are replaced by those" in " ".join(
        str(plan).split()
    )
