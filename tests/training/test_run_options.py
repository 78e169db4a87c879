"""Settings that the interfaces of other projects need: parts after an update, and a rate for announced steps."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import secateur
from secateur.errors import ConfigError, StateError
from secateur.masking.run_options import RunOptions
from secateur.training.pytorch import PytorchPruner, prepare_together
from tiny_models import mlp
from training.models import CONFIG, NeverRevived, backward, equal_states

PARTS: dict[str, Any] = {
    **CONFIG,
    "kind": "progressive",
    "sparsity_decay_type": "linear",
    "start_step": 1,
    "end_step": 13,
    "pruning_frequency": 4,
}


def start(config: dict[str, Any], *options: RunOptions | None) -> tuple[nn.Sequential, SGD, PytorchPruner]:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    return model, optimizer, prepare_together(model, [config], optimizer, options)[0]


def count_pruned(config: dict[str, Any], steps: int, until: int | None) -> list[int]:
    """Train, and return how many of 1024 weights are pruned before the first step and after each."""
    model, optimizer, pruner = start(config, RunOptions(parts_until=until))
    counts, watch = [], NeverRevived(pruner)
    for step in range(steps + 1):
        counts.append(sum(int((~mask).sum()) for mask in pruner.masks.values()))
        if step < steps:
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            watch(step)
    report = pruner.finalize()
    assert report.is_complete
    assert report.last_step == steps
    return counts


def test_parts_follow_the_update() -> None:
    found = count_pruned(PARTS, 14, until=13)
    # A quarter of 256 weights at each update, another after each step, and all of the last update after the end.
    assert found[:5] == [0] * 5
    assert found[5:13] == [64, 128, 192, 256, 320, 384, 448, 512]
    assert found[13:] == [576, 768]


def test_parts_go_on_after_the_last_update_until_the_given_step() -> None:
    assert count_pruned(PARTS, 16, until=16)[12:] == [512, 576, 640, 704, 768]
    assert count_pruned(PARTS, 15, until=14)[12:] == [512, 576, 640, 768]


def test_parts_of_long_intervals_are_counted_from_the_start() -> None:
    config = {**PARTS, "end_step": 19, "pruning_frequency": 9}
    # Every two steps from step 1 on: 10 is an update, and 11, 13, 15 and 17 are in its interval.
    found = count_pruned(config, 25, until=27)
    assert found[10:20] == [96, 96, 96, 192, 192, 288, 288, 384, 384, 480]
    assert found[19:] == [480, 480, 576, 576, 672, 672, 768]


def test_short_intervals_have_one_part_before_the_next_update() -> None:
    config = {**PARTS, "end_step": 10, "pruning_frequency": 3}
    assert count_pruned(config, 11, until=10) == [0] * 4 + [64] * 3 + [320] * 3 + [576, 768]


def test_frequency_of_one_has_no_parts() -> None:
    config = {**PARTS, "end_step": 4, "pruning_frequency": 1}
    assert count_pruned(config, 4, until=4) == [0, 0, 256, 512, 768]


def test_gradients_rank_from_zero_on() -> None:
    config = {**PARTS, "start_step": 0, "end_step": 8}
    assert count_pruned(config, 9, until=8) == [0] * 4 + [96, 192, 288, 384, 480, 768]


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 8, 9, 13, 14])
def test_parts_resume_with_the_same_bits(stop: int) -> None:
    def train(run: tuple[nn.Sequential, SGD, PytorchPruner], steps: range) -> dict[str, Any]:
        for step in steps:
            run[0].zero_grad()
            backward(run[0], step)
            run[1].step()
        return run[2].state_dict()

    straight, resumed = (start(PARTS, RunOptions(parts_until=13)) for _ in range(2))
    state = train(straight, range(stop))
    resumed[0].load_state_dict(straight[0].state_dict())
    resumed[1].load_state_dict(copy.deepcopy(straight[1].state_dict()))
    resumed[2].load_state_dict(copy.deepcopy(state))
    assert equal_states(*(train(run, range(stop, 15)) for run in (straight, resumed)))
    with pytest.raises(StateError, match="parts_until was 13, is None"):
        start(PARTS, None)[2].load_state_dict(state)


@pytest.mark.parametrize(("key", "value"), [("condemned_keep", None), ("asked", 0.5)])
def test_contradictory_states_are_refused(key: str, value: Any) -> None:
    model, optimizer, pruner = start(PARTS, RunOptions(parts_until=13))
    for step in range(6):
        backward(model, step)
        optimizer.step()
    state = pruner.state_dict()
    state["runs"][0]["progress"][key] = value
    with pytest.raises(StateError, match=f"progress.{key}"):
        start(PARTS, RunOptions(parts_until=13))[2].load_state_dict(state)


# Group lasso of announced steps.

LASSO: dict[str, Any] = {
    **CONFIG,
    "pattern": "4x1",
    "criterion": "magnitude",
    "reg_type": "group_lasso",
    "reg_coeff": 0.1,
    "end_step": 4,
}


def train_announced(
    rate: float | None, *, lr: float = 0.25, config: dict[str, Any] = LASSO, hooked: bool = False
) -> nn.Sequential:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=lr)
    (pruner,) = prepare_together(model, [config], optimizer if hooked else None, [RunOptions(learning_rate=rate)])
    for step in range(6):
        model.zero_grad()
        backward(model, step)
        if not hooked:
            pruner.before_step()
        optimizer.step()
        if not hooked:
            pruner.after_step()
    assert pruner.finalize().sparsity == 0.75
    return model


def test_announced_steps_shrink_by_the_rate_of_the_optimizer_that_makes_them() -> None:
    hooked, announced = train_announced(None, hooked=True), train_announced(0.0)
    assert all(map(torch.equal, hooked.parameters(), announced.parameters()))
    dense = train_announced(None, config={**LASSO, "reg_type": None})
    assert announced[0].weight.norm() < dense[0].weight.norm()
    assert [int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) for model in (announced, dense)] == [
        768
    ] * 2


def test_rates_of_groups_are_those_of_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False))
    config = {**LASSO, "target_sparsity": 0.0, "end_step": 2}
    (pruner,) = prepare_together(model, [config], None, [RunOptions(learning_rate=0.0)])
    before = [layer.weight.detach().clone() for layer in model]
    first, second = SGD(model[0].parameters(), lr=0.5), SGD(model[1].parameters(), lr=0.0)
    pruner.before_step()
    for layer in model:
        layer.weight.grad = torch.zeros_like(layer.weight)
    first.step()
    second.step()
    pruner.after_step()
    norms = before[0].reshape(2, 4, 4).norm(dim=1, keepdim=True)
    expected = before[0].reshape(2, 4, 4) * (1 - 0.1 * 0.5 * 2 / norms).clamp(min=0)
    torch.testing.assert_close(model[0].weight.detach(), expected.reshape(8, 4))
    assert torch.equal(model[1].weight, before[1])


def test_rate_applies_where_no_torch_optimizer_makes_the_steps() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2))
    config = {**LASSO, "target_sparsity": 0.0, "end_step": 1}
    (pruner,) = prepare_together(model, [config], None, [RunOptions(learning_rate=0.5)])
    before = model[0].weight.detach().reshape(2, 4, 4).clone()
    pruner.before_step()
    pruner.after_step()
    expected = before * (1 - 0.1 * 0.5 * 2 / before.norm(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(model[0].weight.detach(), expected.reshape(8, 4))


def test_rate_is_refused_without_the_option_and_if_negative() -> None:
    with pytest.raises(ConfigError, match="reg_type requires an optimizer"):
        secateur.prepare(mlp(), LASSO)
    (pruner,) = prepare_together(mlp(), [LASSO], None, [RunOptions(learning_rate=-1.0)])
    with pytest.raises(ConfigError, match="group lasso needs a learning rate of at least 0"):
        pruner.before_step()
