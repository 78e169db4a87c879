"""Counts the bytes that a process sends to others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

NOTHING = {"_wrap_tensor_autograd", "barrier", "monitored_barrier_", "wait_tensor"}


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process sends, with collectives that are rings.

    Args:
        size: Number of processes in every group.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.bytes = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented
        if func.namespace in ("c10d", "_c10d_functional"):
            self.bytes += self._count(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> int:
        if name in NOTHING:
            return 0
        source = {"allgather_": 1, "_allgather_base_": 1, "alltoall_base_": 1}.get(name, 0)
        sent = sum(tensor.nbytes for tensor in _flatten(args[source]))
        others = self.size - 1
        rates = {
            "allreduce_": 2 * others / self.size,
            "allgather_": others,
            "_allgather_base_": others,
            "all_gather_into_tensor": others,
            "alltoall_base_": others / self.size,
        }
        return round(sent * rates[name])


def _flatten(value: Any) -> Iterable[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else value
