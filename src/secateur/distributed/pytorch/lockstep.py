"""Check that processes are in lockstep before they communicate, so that a call in only some of them is an error.

Without this check, collectives of different kinds would be matched with each other, and the processes hang or fail. It
uses a separate process group, because a process may be waiting in the group of the model.
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from secateur.distributed.pytorch.ranks import Ranks
from secateur.errors import RankError

__all__ = ["MAX_WAIT", "check_lockstep"]

MAX_WAIT = timedelta(minutes=10)
"""How long a process waits for the others."""

_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Process group → the separate group of its processes."""


def check_lockstep(ranks: Ranks, action: str, step: int) -> None:
    """Wait for the other ranks, and check that all of them are about to do the same.

    Args:
        ranks: The ranks.
        action: What this rank is about to do, such as ``"finalize()"``.
        step: Number of steps that it has taken.

    Raises:
        RankError: The ranks are about to do different things, or after different numbers of steps: all of them raise
            it. Or some ranks have not arrived after `MAX_WAIT`: those that have arrived raise it.

    Examples:
        >>> check_lockstep(Ranks(), "finalize()", 10)
    """
    if ranks.size == 1:
        return
    group = _find_group(ranks)
    separate = Ranks.join(group)
    try:
        dist.monitored_barrier(group, MAX_WAIT, wait_all_ranks=True)
        places = separate.gather_tensors(torch.tensor([zlib.crc32(action.encode()), step]))
        if any(not torch.equal(place, places[0]) for place in places):
            _refuse_other_places(separate.gather((action, step)))
    except RuntimeError as error:
        if isinstance(error, RankError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(
            f"Rank {dist.get_rank()} waits in {action} after {step} steps, but others have not arrived within "
            f"{MAX_WAIT.total_seconds():g} s ({reason}). All ranks must take the same number of steps, and call "
            f"the same methods of the pruner. Give every rank the same number of batches."
        ) from error


def _find_group(ranks: Ranks) -> Any:
    if ranks.group not in _GROUPS:
        _GROUPS[ranks.group] = dist.new_group(
            dist.get_process_group_ranks(ranks.group), timeout=MAX_WAIT, backend="gloo", use_local_synchronization=True
        )
    return _GROUPS[ranks.group]


def _refuse_other_places(places: list[tuple[str, int]]) -> None:
    described = "; ".join(f"rank {rank} in {action} after {step} steps" for rank, (action, step) in enumerate(places))
    raise RankError(
        f"All ranks must take the same number of steps, and call the same methods of the pruner, found {described}. "
        f"Give every rank the same number of batches, and skip steps on all ranks or on none."
    )
