"""States of sharded runs in one process without sharding, and the other way round."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import secateur
from distributed.models import CONFIG, Trained, check_equal, describe, train
from distributed.processes import run_ranks
from distributed.units import make_attention, make_thirty

PROGRESSIVE = {"kind": "progressive", "progressive_steps": 2, "pruning_frequency": 2}
CASES: dict[str, dict[str, Any]] = {
    "3x1": {"pattern": "3x1"},
    "2:4": {"pattern": "2:4", "criterion_reduce_type": "max", "op_names": ["2"]},
    "channelx1": {"pattern": "channelx1", "criterion_reduce_type": "max"},
    "progressive": {"pattern": "1x1", **PROGRESSIVE},
    "heads": {"pattern": "heads", "target_sparsity": 0.34},
}
BREAK = 2
FULL = StateDictOptions(full_state_dict=True)


def begin(name: str, *, is_sharded: bool) -> Trained:
    model: nn.Module = make_attention() if name == "heads" else make_thirty()
    if name == "2:4":
        model[0], model[2] = nn.Linear(8, 32), nn.Linear(32, 28)  # 30 inputs are no multiple of 4
    if is_sharded:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Trained(model, optimizer, secateur.prepare(model, {**CONFIG, **CASES[name]}, optimizer))


def collect(trained: Trained) -> dict[str, Any]:
    model, optimizer = get_state_dict(trained.model, trained.optimizer)
    return {"model": model, "optimizer": optimizer, "pruner": trained.pruner.state_dict()}


def load(trained: Trained, state: dict[str, Any], options: StateDictOptions | None = None) -> None:
    set_state_dict(
        trained.model,
        trained.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )
    trained.pruner.load_state_dict(state["pruner"])
    assert trained.pruner.step == BREAK


def finish(trained: Trained) -> dict[str, Any]:
    train(trained.model, trained.optimizer, range(BREAK, 4))
    return describe(trained)


def continue_from(folder: Path) -> dict[str, Any]:
    """Continue, sharded, what one process saved; and save the sharded runs before they end."""
    ends = {}
    for name in CASES:
        trained = begin(name, is_sharded=True)
        load(trained, torch.load(folder / f"{name}.pt"), FULL)
        dcp.save(collect(trained), checkpoint_id=folder / name)
        ends[name] = finish(trained)
    return ends


def test_states_are_exchanged_with_one_process(tmp_path: Path) -> None:
    expected = {}
    for name in CASES:
        trained = begin(name, is_sharded=False)
        train(trained.model, trained.optimizer, range(BREAK))
        torch.save(collect(trained), tmp_path / f"{name}.pt")
        expected[name] = finish(trained)
        assert 0 < expected[name]["sparsity"] < 1
    for found in run_ranks(continue_from, 2, tmp_path):
        for name, end in expected.items():
            check_equal(found[name], end)
    for name, end in expected.items():
        dcp_to_torch_save(tmp_path / name, tmp_path / "whole.pt")
        state, trained = torch.load(tmp_path / "whole.pt"), begin(name, is_sharded=False)
        load(trained, state)
        check_equal(finish(trained), end)
