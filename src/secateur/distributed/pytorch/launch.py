"""Join the processes that ``torchrun`` has started, and leave them."""

from __future__ import annotations

import os
from contextlib import suppress

import torch
import torch.distributed as dist

from secateur.distributed.pytorch.ranks import Ranks
from secateur.errors import RankError

__all__ = ["join_processes", "leave_processes", "place_on_rank", "wait_for_end"]


def join_processes(device: str | None) -> Ranks:
    """Form a process group with the other processes of ``torchrun``: gloo, and NCCL for GPUs.

    Args:
        device: The device that each process uses, as the user names it.

    Raises:
        RankError: The processes cannot reach each other.
    """
    is_gpu = device is not None and device.partition(":")[0] == "cuda"
    try:
        if is_gpu:
            torch.cuda.set_device(place_on_rank(device))
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(f"The processes that torchrun has started cannot work together ({reason}).") from error
    return Ranks.join()


def place_on_rank(device: str | None) -> str | None:
    """Return the device of this process: with several processes on a machine, ``"cuda"`` is a GPU for each.

    Examples:
        >>> place_on_rank("cpu")
        'cpu'
    """
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def wait_for_end(ranks: Ranks) -> None:
    """Wait until another process has ended, which closes its connections."""
    with suppress(Exception):
        ranks.gather(None)


def leave_processes() -> None:
    """Leave the process group."""
    with suppress(Exception):
        dist.destroy_process_group()
