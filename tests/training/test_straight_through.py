"""SR-STE: pruned weights are zero in every forward pass, and keep training."""

import io
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError, SecateurError
from tiny_models import mlp
from training.models import OPTIMIZERS, Trial, backward, begin, equal_states, revived
from training.test_outside_changes import SAM

STEPS = 12
SR_STE: dict[str, Any] = {
    "kind": "sr_ste",
    "pattern": "2:4",
    "start_step": 1,
    "end_step": 9,
    "pruning_frequency": 2,
    "sr_ste_decay": 0.05,
}
UPDATES = {1, 3, 5, 7, 9}


def select_best(weight: torch.Tensor) -> torch.Tensor:
    """The mask of 2:4, with ties at the lower index."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for row, values in enumerate(weight.abs()):
        for start in range(0, len(values), 4):
            order = sorted(range(start, start + 4), key=lambda index, values=values: (-values[index].item(), index))
            mask[row, order[:2]] = True
    return mask


def train_by_hand(optimizer: str) -> list[tuple[nn.Sequential, dict[str, torch.Tensor]]]:
    """Equation (9) of the paper with dense weights beside the model, and the model and its masks after each step."""
    model = mlp()
    layers = {name: model.get_submodule(name) for name in ("0", "2")}
    dense = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    masks = {name: select_best(weight) for name, weight in dense.items()}
    made = OPTIMIZERS[optimizer](model.parameters())
    found = []
    for step in range(1, STEPS + 1):
        for name, layer in layers.items():
            layer.weight.data = dense[name] * masks[name]
        model.zero_grad()
        backward(model, step - 1)
        is_dense = step <= SR_STE["end_step"]
        for name, layer in layers.items():
            if is_dense:
                layer.weight.data = dense[name].clone()
                layer.weight.grad += SR_STE["sr_ste_decay"] * ~masks[name] * dense[name]
        made.step()
        for name, layer in layers.items():
            dense[name] = layer.weight.detach().clone()
            masks[name] = select_best(dense[name]) if step in UPDATES else masks[name]
            layer.weight.data = dense[name] * masks[name]
        found.append(({key: value.clone() for key, value in model.state_dict().items()}, dict(masks)))
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused_adamw"])
def test_a_run_is_that_of_the_paper(optimizer: str) -> None:
    expected = train_by_hand(optimizer)
    trial = begin(SR_STE, optimizer=optimizer)
    first, changes = trial.pruner.masks, set()
    assert all(torch.equal(mask, select_best(mlp().get_submodule(name).weight)) for name, mask in first.items())
    before = first

    def check(step: int) -> None:
        nonlocal before
        state, masks = expected[step - 1]
        assert equal_states(trial.pruner.masks, masks), step
        torch.testing.assert_close(dict(trial.model.state_dict()), state, rtol=1e-6, atol=1e-7)
        assert revived(trial.pruner) == []
        assert trial.pruner.sparsity == 0.5
        changes.update({step} if not equal_states(trial.pruner.masks, before) else set())
        before = trial.pruner.masks

    trial.train(range(STEPS), check)
    assert trial.pruner.finalize().is_complete
    assert len(changes) > 1
    assert changes <= UPDATES


def resume(file: io.BytesIO) -> Trial:
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other = begin(SR_STE, model=mlp(seed=1))
    for part in Trial._fields:
        getattr(other, part).load_state_dict(states[part])
    return other


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    trial, files = begin(SR_STE), {}
    for step in range(STEPS):
        files[step] = io.BytesIO()
        torch.save({part: getattr(trial, part).state_dict() for part in Trial._fields}, files[step])
        trial.train([step])
    for stop in (0, 1, 2, 9, 11):
        other = resume(files[stop]).train(range(stop, STEPS))
        for part in Trial._fields:
            assert equal_states(getattr(other, part).state_dict(), getattr(trial, part).state_dict()), (stop, part)


def test_a_state_without_latent_weights_is_damaged() -> None:
    trial = begin(SR_STE).train(range(4))
    for spoil, problem in (
        (lambda run: run.pop("latent"), "latent must include all of '0', '2' before the last update"),
        (lambda run: run["latent"].pop("0"), "latent must include all of"),
        (lambda run: run["latent"].update({"0": torch.zeros(3)}), "latent of '0' must be float32 of shape"),
    ):
        state = trial.pruner.state_dict()
        state["runs"][0]["latent"] = dict(state["runs"][0]["latent"])
        spoil(state["runs"][0])
        with pytest.raises(SecateurError, match=problem):
            begin(SR_STE).pruner.load_state_dict(state)


def test_pruned_weights_are_zero_for_everything_but_the_step() -> None:
    trial = begin(SR_STE)
    seen: list[bool] = []
    for layer in (trial.model[0], trial.model[2]):
        layer.register_forward_pre_hook(lambda module, _: seen.append(int((module.weight == 0).sum()) * 2))
    trial.train(range(STEPS), lambda _: seen.append(0))
    assert set(seen) == {0, 512}


def interrupt_step(trial: Trial) -> None:
    """Make step 5, and end it after the optimizer has changed the weights."""
    trial.model.zero_grad()
    backward(trial.model, 4)
    handle = trial.optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    trial.optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    with pytest.raises(KeyboardInterrupt):
        trial.optimizer.step()
    handle.remove()


def test_after_an_interrupt_training_continues_with_the_latent_weights_of_the_step_before() -> None:
    trial = begin(SR_STE, optimizer="sgd").train(range(4))
    latent = {name: values.clone() for name, values in trial.pruner.state_dict()["runs"][0]["latent"].items()}
    interrupt_step(trial)
    assert revived(trial.pruner) != []
    masks = trial.pruner.masks
    for group in trial.optimizer.param_groups:
        group["lr"] = 0.0
    trial.train([4])  # continues with the latent weights of the step before
    after = trial.pruner.state_dict()["runs"][0]["latent"]
    assert all(torch.equal(after[name][~mask], latent[name][~mask]) for name, mask in masks.items())


def test_closing_after_an_interrupt_sets_pruned_weights_to_zero() -> None:
    trial = begin(SR_STE, optimizer="sgd").train(range(4))
    masks = trial.pruner.masks
    interrupt_step(trial)
    trial.pruner.close()
    assert not any(trial.model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())


class Nested(torch.optim.SGD):
    """Its step calls that of its base class, so hooks run twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_that_calls_the_step_of_its_base_class_is_one_step() -> None:
    runs = []
    for kind in (torch.optim.SGD, Nested):
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.1)
        runs.append(Trial(model, optimizer, secateur.prepare(model, SR_STE, optimizer)).train(range(STEPS)))
    plain, nested = runs
    assert nested.pruner.step == STEPS
    assert equal_states(nested.model.state_dict(), plain.model.state_dict())


def test_decay_is_added_in_every_step_however_often_gradients_were_written() -> None:
    def train_scaled(odd: int) -> Trial:
        trial = begin(SR_STE, optimizer="sgd")
        for step in range(STEPS):
            trial.optimizer.zero_grad()  # frees gradients, so that the next ones can have the same memory
            backward(trial.model, step)
            for _ in range(step % 2 * odd):
                for parameter in trial.model.parameters():
                    parameter.grad.mul_(1.0)
            trial.optimizer.step()
        return trial

    assert equal_states(train_scaled(odd=0).model.state_dict(), train_scaled(odd=1).model.state_dict())


def test_after_the_last_update_only_kept_weights_train() -> None:
    trial = begin(SR_STE).train(range(STEPS))
    assert trial.pruner.state_dict()["runs"][0]["latent"] == {}


def test_a_layer_that_the_user_froze_keeps_its_mask() -> None:
    trial = begin(SR_STE)
    trial.pruner.plan.patterns[0].keep_mask_layers["0"] = "good as it is"
    before = trial.pruner.masks
    trial.train(range(STEPS))
    assert [torch.equal(mask, before[name]) for name, mask in trial.pruner.masks.items()] == [True, False]


def test_announced_steps_must_be_announced_before_too() -> None:
    model = mlp()
    pruner = secateur.prepare(model, SR_STE)
    with pytest.raises(SecateurError, match="after_step was called without before_step"):
        pruner.after_step()


def test_what_is_refused() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"kind='sr_ste' is for N:M patterns such as '2:4', found '4x1'"):
        secateur.plan(model, {**SR_STE, "pattern": "4x1"})
    with pytest.raises(ConfigError, match=r"end_step must be set with kind='sr_ste'"):
        secateur.plan(model, {**SR_STE, "end_step": None})
    with pytest.raises(ConfigError, match=r"kind='sr_ste' needs the gradients of pruned weights"):
        secateur.prepare(model, SR_STE, SAM(model.parameters(), torch.optim.SGD))
    pruner = secateur.prepare(model, SR_STE, optimizer)
    with pytest.raises(ConfigError, match=r"kind='sr_ste' does not support optimizer.step\(closure\)"):
        optimizer.step(lambda: torch.zeros(()))
    assert revived(pruner) == []
    assert "pruned ones keep training until then" in " ".join(str(pruner.plan).split())
