"""Compare how far processes have come before they communicate, so that a call that only some of them make is an error.

Without this, a collective of one process meets a collective of another kind in another process, and both hang or end.
Processes meet in a process group of their own, because one of them may be waiting in the group of the model.
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

__all__ = ["MAX_WAIT", "meet"]

MAX_WAIT = timedelta(minutes=10)
"""How long a process waits for the others."""

_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Process group → the group in which its processes meet."""


def meet(ranks: Ranks, action: str, step: int) -> None:
    """Wait for the other ranks, and compare what all of them are about to do.

    Args:
        ranks: The ranks.
        action: What this rank is about to do, such as ``"finalize()"``.
        step: Number of steps that it has taken.

    Raises:
        RankError: The ranks are about to do different things, or after different numbers of steps: all of them raise
            it. Or some have not come after `MAX_WAIT`: those that have come raise it.

    Examples:
        >>> meet(Ranks(), "finalize()", 10)
    """
    if ranks.size == 1:
        return
    group = _find_group(ranks)
    there = Ranks.join(group)
    try:
        dist.monitored_barrier(group, MAX_WAIT, wait_all_ranks=True)
        places = there.gather_tensors(torch.tensor([zlib.crc32(action.encode()), step]))
        if any(not torch.equal(place, places[0]) for place in places):
            _refuse_other_places(there.gather((action, step)))
    except RuntimeError as error:
        if isinstance(error, RankError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(
            f"Rank {dist.get_rank()} waits in {action} after {step} steps, but others have not come within "
            f"{MAX_WAIT.total_seconds():g} s ({reason}). All ranks must take the same number of steps, and make the "
            f"same calls of the pruner. Give every rank the same number of batches."
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
        f"All ranks must take the same number of steps, and make the same calls of the pruner, found {described}. Give "
        f"every rank the same number of batches, and skip steps on all ranks or on none."
    )
