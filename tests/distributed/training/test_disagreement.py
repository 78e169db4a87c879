"""Ranks that do not take the same steps, and other mistakes that only some ranks make: errors instead of hangs."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import secateur
from distributed.models import CONFIG, begin, make_model, shard, train
from distributed.processes import run_ranks
from secateur.distributed.pytorch import lockstep
from secateur.errors import RankError

LIMIT, WAIT = 100.0, 5.0
EACH_STEP = {"pattern": "channelx1", "end_step": 6}
MAGNITUDE = {"pattern": "4x1", "criterion": "magnitude", "end_step": 6, "pruning_frequency": 2}


def run_out_of_batches(rank: int) -> None:
    """Rank 1 has a batch less, and ends its run while rank 0 gathers weights for its next batch."""
    trained = begin(MAGNITUDE)
    train(trained.model, trained.optimizer, range(5 - rank))
    trained.pruner.finalize()


def skip_a_step(rank: int) -> None:
    """Rank 1 skips a step, so that rank 0 updates masks while rank 1 gathers weights for its next batch."""
    trained = begin(MAGNITUDE)
    train(trained.model, trained.optimizer, range(2))
    for parameter in trained.model.parameters():
        parameter.grad = None if rank else parameter.grad
    if rank == 0:
        trained.optimizer.step()
    train(trained.model, trained.optimizer, range(2, 5))


def take_more_steps(rank: int) -> None:
    """Rank 1 takes two steps more, without batches."""
    trained = begin(MAGNITUDE)
    train(trained.model, trained.optimizer, range(3))
    for _ in range(2 * rank):
        trained.optimizer.step()
    trained.pruner.finalize()


def accumulate_other_steps(rank: int) -> None:
    """A criterion that sends in every step."""
    trained = begin(EACH_STEP)
    train(trained.model, trained.optimizer, range(2))
    if rank == 0:
        trained.optimizer.step()
    trained.pruner.state_dict()


def read_on_one_rank(rank: int) -> None:
    trained = begin(MAGNITUDE)
    if rank == 0:
        assert trained.pruner.sparsity == 0
    else:
        trained.pruner.report()


MISTAKES: dict[str, Callable[[int], None]] = {
    function.__name__: function for function in (take_more_steps, accumulate_other_steps, read_on_one_rank)
}


def make_mistake(folder: Path, name: str) -> str:
    """Return the error of this rank, in a process group with a short time limit."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    lockstep.MAX_WAIT = timedelta(seconds=WAIT)
    store = dist.FileStore(str(folder / "store of a short limit"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    try:
        {"run_out_of_batches": run_out_of_batches, "skip_a_step": skip_a_step}[name](rank)
    except RankError as error:
        return f"RankError: {error}"
    except RuntimeError as error:  # of torch, in the rank that was left alone
        return f"RuntimeError: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("name", "waiting", "where"),
    [("run_out_of_batches", 1, "finalize() after 4 steps"), ("skip_a_step", 0, "a mask update after 3 steps")],
)
def test_a_rank_that_waits_says_for_what(name: str, waiting: int, where: str, tmp_path: Path) -> None:
    messages = run_ranks(make_mistake, 2, tmp_path, name, limit=LIMIT)
    reason = f"RankError: Rank {waiting} waits in {where}, but others have not arrived within 5 s"
    assert messages[waiting].startswith(reason)
    assert messages[1 - waiting].startswith("RuntimeError: ")


def make_mistakes(folder: Path) -> dict[str, str]:
    """Return the errors of this rank, whose rank groups go on to be used."""
    lockstep.MAX_WAIT = timedelta(seconds=LIMIT)
    rank, messages = dist.get_rank(), {}
    for name, make in MISTAKES.items():
        try:
            make(rank)
        except RankError as error:
            messages[name] = str(error)
    model = shard(make_model())
    dist.destroy_process_group()
    with pytest.raises(RankError) as found:
        secateur.prepare(model, {**CONFIG, "pattern": "4x1"}, torch.optim.SGD(model.parameters(), lr=0.1))
    store = dist.FileStore(str(folder / "another store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    dist.barrier()  # so that no rank ends while the other still connects to it
    return messages | {"no process group": str(found.value)}


def test_ranks_that_are_not_in_lockstep_say_where(tmp_path: Path) -> None:
    first, second = run_ranks(make_mistakes, 2, tmp_path, limit=LIMIT)
    assert first == second
    for name, reason in {
        "take_more_steps": "found rank 0 in finalize() after 3 steps; rank 1 in a mask update after 5 steps",
        "accumulate_other_steps": "found rank 0 in a step of the optimizer after 2 steps; rank 1 in state_dict() after",
        "read_on_one_rank": "found rank 0 in sparsity after 0 steps; rank 1 in report() after 0 steps",
        "no process group": "The model is sharded ('0.weight', '0.bias', '2.weight' and 3 more), but there is no",
    }.items():
        assert reason in first[name], name
