"""Tests of what a run remembers about its updates."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.masking.update_history import UpdateHistory, merge_histories
from secateur.training import Pruner

CONFIG = {
    "pattern": "1x1",
    "target_sparsity": 0.8,
    "start_step": 2,
    "end_step": 10,
    "pruning_frequency": 4,
    "sparsity_decay_type": "linear",
}


def prepare(config: Any = CONFIG) -> tuple[Pruner, torch.optim.Optimizer, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return secateur.prepare(net, config, optimizer=optimizer), optimizer, net


def train(optimizer: torch.optim.Optimizer, net: nn.Module, steps: int) -> None:
    for _ in range(steps):
        net(torch.ones(4, 10)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_history_has_the_start_and_the_share_after_each_update() -> None:
    pruner, optimizer, net = prepare()
    assert pruner.report().history == ((0, 0.0),)
    seen = {0: 0.0}
    for _ in range(12):
        train(optimizer, net, 1)
        if pruner.step in (6, 10):  # at step 2, the first update asks for no more than before
            seen[pruner.step] = pruner.report().unit_sparsity
    report = pruner.finalize()
    assert dict(report.history) == pytest.approx(seen)
    assert seen[10] == 0.8
    assert report.summarize().history == report.history


def test_a_resumed_run_has_the_history_since_then() -> None:
    pruner, optimizer, net = prepare()
    train(optimizer, net, 7)
    state, weights = pruner.state_dict(), net.state_dict()
    pruner, optimizer, net = prepare()
    net.load_state_dict(weights)
    pruner.load_state_dict(state)
    train(optimizer, net, 5)
    assert pruner.report().history == ((10, 0.8),)


def test_layers_with_other_settings_are_counted_by_their_units() -> None:
    later = {"0": {"target_sparsity": 0.4, "start_step": 10, "end_step": 10}}
    pruner, optimizer, net = prepare(CONFIG | {"layers": later})
    train(optimizer, net, 10)
    history = dict(pruner.report().history)
    assert history.keys() == {0, 6, 10}
    assert history[6] == pytest.approx(0.4 * 200 / 400)  # of layers with 200 units each
    assert history[10] == pytest.approx((0.8 * 200 + 0.4 * 200) / 400)


def test_updates_that_a_run_has_not_reached_yet_are_left_out() -> None:
    history = UpdateHistory()
    history.start(0, 0.0)
    history.record(4, before=0.0, after=0.2)
    history.record(8, before=0.2, after=0.4)  # undone, because the step failed
    assert merge_histories([history], [100], last=4) == ((0, 0.0), (4, 0.2))
    history.record(8, before=0.2, after=0.5)
    assert merge_histories([history], [100], last=8) == ((0, 0.0), (4, 0.2), (8, 0.5))


def test_a_progressive_run_counts_units_once_they_are_whole() -> None:
    pruner, optimizer, net = prepare(CONFIG | {"kind": "progressive", "progressive_steps": 2})
    train(optimizer, net, 12)
    assert dict(pruner.report().history) == pytest.approx({0: 0.0, 6: 0.4, 10: 0.8})


def test_a_locked_run_has_none() -> None:
    pruner, optimizer, net = prepare()
    train(optimizer, net, 10)
    pruner.finalize()
    locked = secateur.prepare(net, {"kind": "pattern_lock"}, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    assert locked.report().history == ()


def test_pruning_at_once_has_none() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert secateur.prune(net, "2:4").history == ()
