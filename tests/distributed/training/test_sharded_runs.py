"""What happens around the steps of sharded runs: other divisions, checkpoints, evaluation, bad input."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict

import secateur
from distributed.models import CONFIG, DIVISIONS, begin, check_equal, describe, make_model, to_whole, train
from distributed.processes import run_ranks
from secateur.errors import ConfigError, LayerError, RankError, ScoreError, StateError

ONCE = {"start_step": 0, "end_step": 0, "criterion": "magnitude", "sparsity_decay_type": "one_shot"}
RESUMED = {
    "4x1": {"pattern": "4x1"},
    "2:4": {"pattern": "2:4", "criterion_reduce_type": "max"},
    "3x1": {"pattern": "3x1"},
    "rigl": {  # with gradients of a step between two updates
        "pattern": "3x1",
        "kind": "rigl",
        "criterion": "magnitude",
        "end_step": 4,
        "pruning_frequency": 2,
        "regrow_fraction": 0.5,
    },
    "sr_ste": {"pattern": "2:4", "kind": "sr_ste", "criterion": "magnitude", "end_step": 4},
}
BREAK = 2


def save(folder: Path) -> dict[str, Any]:
    """Save each run in the middle, and return what it ends with."""
    ends = {}
    for name, config in RESUMED.items():
        trained = begin(config)
        train(trained.model, trained.optimizer, range(BREAK))
        model, optimizer = get_state_dict(trained.model, trained.optimizer)
        state = {"model": model, "optimizer": optimizer, "pruner": trained.pruner.state_dict()}
        dcp.save(state, checkpoint_id=folder / name)
        train(trained.model, trained.optimizer, range(BREAK, 4))
        ends[name] = describe(trained)
    return ends


def resume(folder: Path) -> dict[str, Any]:
    ends = {}
    for name, config in RESUMED.items():
        trained = begin(config)
        model, optimizer = get_state_dict(trained.model, trained.optimizer)
        assert trained.pruner.step == 0  # the state of the optimizer was created by a step
        state = {"model": model, "optimizer": optimizer, "pruner": trained.pruner.state_dict()}
        dcp.load(state, checkpoint_id=folder / name)
        set_state_dict(
            trained.model, trained.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        trained.pruner.load_state_dict(state["pruner"])
        assert trained.pruner.step == BREAK
        train(trained.model, trained.optimizer, range(BREAK, 4))
        ends[name] = describe(trained)
    return ends


def test_a_checkpoint_of_four_processes_is_resumed_by_two_and_by_one(tmp_path: Path) -> None:
    expected = run_ranks(save, 4, tmp_path)[0]
    for ranks in (2, 1):
        for found in run_ranks(resume, ranks, tmp_path):
            for name, end in expected.items():
                check_equal(found[name], end)


def divide() -> dict[str, Any]:
    """Prune the weights that a model starts with, divided in other ways."""
    names = ["tensors"] if dist.get_world_size() == 2 else ["tensors", "hybrid"]
    return {
        f"{name} {pattern}": describe(begin({**ONCE, "pattern": pattern}, name))
        for name in names
        for pattern in ("1x1", "2:4", "4x1")
    }


@pytest.mark.parametrize("ranks", [2, 4])
def test_other_divisions_prune_the_same_weights(ranks: int) -> None:
    expected = {pattern: describe(begin({**ONCE, "pattern": pattern}, "whole")) for pattern in ("1x1", "2:4", "4x1")}
    for found in run_ranks(divide, ranks):
        for name, end in found.items():
            check_equal(end, expected[name.rpartition(" ")[2]])


OWN_DATA: dict[str, dict[str, Any]] = {
    "iterative": {"pattern": "4x1", "criterion": "gradient"},
    "rigl": {"pattern": "1x1", "criterion": "magnitude", "kind": "rigl"},
    "set": {"pattern": "1x1", "criterion": "magnitude", "kind": "set"},
}


def train_on_own_data(config: dict[str, Any]) -> dict[str, Any]:
    """Train copies of a model with different data in each process."""
    model = nn.parallel.DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = secateur.prepare(model, {**CONFIG, **config}, optimizer)
    for step in range(4):
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        optimizer.zero_grad()
        model(torch.randn(8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    masks = pruner.masks
    if dist.get_rank() == 0:  # copies need no other process to end a run
        assert pruner.finalize().is_complete
    return masks


def check_edges() -> None:
    """Steps and checks in states of a model that are easy to get wrong."""
    model, optimizer, pruner = begin({"pattern": "4x1"})
    get_optimizer_state_dict(model, optimizer)
    assert pruner.step == 0
    train(model, optimizer, range(4))
    revived = [
        name for name, mask in pruner.masks.items() if to_whole(model.get_submodule(name).weight)[~to_whole(mask)].any()
    ]
    assert revived == []
    average = copy.deepcopy(make_model())
    pruner.apply_masks(average)
    assert (average[0].weight[~to_whole(pruner.masks["0"])] == 0).all()
    with torch.no_grad():
        model(torch.ones(1, 8))  # gathers the weights, which the model keeps
    assert pruner.report().sparsity == pruner.sparsity
    assert pruner.finalize().is_complete


def fail() -> dict[str, str]:
    """Bad input, some of it in one process only."""
    rank = dist.get_rank()
    messages: dict[str, str] = {}

    def attempt(name: str, act: Any) -> None:
        try:
            act()
        except (LayerError, RankError, ScoreError, ConfigError) as error:
            messages[name] = f"{type(error).__name__}: {error}"

    def prepare(config: dict[str, Any], model: nn.Module | None = None) -> Any:
        made = DIVISIONS["sharded"](make_model() if model is None else model)
        return secateur.prepare(made, {**CONFIG, **config}, torch.optim.SGD(made.parameters(), lr=0.1))

    def spoil() -> None:
        model = make_model()
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        prepare({"pattern": "4x1"}, model)

    def spoil_gradient() -> None:
        model, optimizer, _ = begin({"pattern": "4x1"})
        model(torch.ones(1, 8)).sum().backward()
        if rank == 0:
            model[0].weight.grad.to_local()[0] = torch.nan
        optimizer.step()

    def violate() -> None:
        model, optimizer, pruner = begin({"pattern": "4x1"})
        train(model, optimizer, range(4))
        if rank == 1:
            model[0].weight.data.to_local().fill_(1.0)
        try:
            pruner.finalize()
        except StateError as error:
            raise RankError(str(error)) from error

    attempt("other configuration", lambda: prepare({"pattern": "4x1", "target_sparsity": 0.5 + rank / 10}))
    attempt("invalid configuration", lambda: prepare({"pattern": "4x1" if rank else "4x"}))
    attempt(
        "other model", lambda: prepare({"pattern": "4x1"}, nn.Sequential(nn.Linear(8, 8 + 4 * rank), nn.Linear(8, 4)))
    )
    attempt("nan", spoil)
    attempt("nan in a gradient", spoil_gradient)
    attempt("violation", violate)
    return messages


def act_in_pairs() -> tuple[Any, Any]:
    masks: dict[str, Any] = {}
    for kind, config in OWN_DATA.items():
        masks |= {f"{kind} {name}": mask for name, mask in train_on_own_data(config).items()}
    check_edges()
    return masks, fail()


def test_two_processes_agree_and_fail_together() -> None:
    (masks, first), (others, second) = run_ranks(act_in_pairs, 2)
    torch.testing.assert_close(masks, others)
    assert all(mask.any() and not mask.all() for mask in masks.values())
    for name, reason in {
        "other configuration": "RankError: Ranks must have the same configuration, but rank 1 has another than rank 0",
        "other model": "RankError: Ranks must have the same model, but rank 1",
        "nan in a gradient": "ScoreError: layer '0': scores must be numbers, found nan",
        "violation": "pruned weights are not zero",
    }.items():
        assert reason in first.get(name, "no error"), name
        assert reason in second.get(name, "no error"), name
    assert "unknown" in first["invalid configuration"].lower()
    assert second["invalid configuration"].startswith("RankError: secateur.prepare failed on rank 0. Rank 0: ")
    assert first["nan"].startswith("ScoreError: layer '0': weights must be numbers, found nan")
    assert second["nan"].startswith("RankError: secateur.prepare failed on rank 0. Rank 0: ScoreError")
