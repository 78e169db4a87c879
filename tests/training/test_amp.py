"""Loss scaling: skipped steps do not count, and scores are those of the gradients without their scale."""

from typing import Any

import pytest
import torch
from torch.amp import GradScaler

from tiny_models import bits
from training.models import CONFIG, NeverRevived, Trial, backward, begin

OVERFLOWS = {2, 5, 6}
"""Steps at which the scaled gradients overflow."""


def train_scaled(trial: Trial, steps: range, overflows: set[int], *, unscale: bool = False) -> GradScaler:
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    check = NeverRevived(trial.pruner)
    for step in steps:
        trial.model.zero_grad()
        scale = scaler.scale(torch.ones(())).detach()
        backward(trial.model, step, scale * torch.inf if step in overflows else scale)
        if unscale:
            scaler.unscale_(trial.optimizer)
        scaler.step(trial.optimizer)
        scaler.update()
        check(step)
    return scaler


def train_plainly(trial: Trial, steps: range, skipped: set[int]) -> None:
    for step in steps:
        if step not in skipped:
            trial.train([step])


@pytest.mark.parametrize("criterion", ["snip_momentum", "taylor", "movement"])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused_adamw", "fused_sgd"])
def test_scaled_run_equals_the_plain_one(optimizer: str, unscale: bool, criterion: str) -> None:
    config: dict[str, Any] = {**CONFIG, "criterion": criterion}
    scaled, plain = begin(config, optimizer=optimizer), begin(config, optimizer=optimizer)
    scaler = train_scaled(scaled, range(13), OVERFLOWS, unscale=unscale)
    train_plainly(plain, range(13), OVERFLOWS)
    assert scaler.get_scale() == 2.0**7
    assert scaled.pruner.step == plain.pruner.step == 10
    assert bits(scaled.model) == bits(plain.model)
    scores = [trial.pruner.state_dict()["runs"][0]["scores"] for trial in (scaled, plain)]
    assert all(torch.equal(scores[0][name], score) for name, score in scores[1].items())
    assert scaled.pruner.finalize() == plain.pruner.finalize()


@pytest.mark.parametrize("optimizer", ["adamw", "fused_adamw"])
def test_overflow_at_the_very_step_of_an_update(optimizer: str) -> None:
    trial = begin({**CONFIG, "end_step": None}, optimizer=optimizer)
    train_scaled(trial, range(1), {0})
    assert (trial.pruner.step, trial.pruner.sparsity) == (0, 0.0)
    train_scaled(trial, range(1), set())
    assert (trial.pruner.step, trial.pruner.sparsity) == (1, 0.75)
