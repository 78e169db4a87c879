"""How a DTensor is divided over processes, and the parts of it that each of them ranks.

A process holds a *shard*: consecutive rows of the first axis, or as the placements define it. It ranks a *part*. For
rows, the parts are the shards, moved to the next boundary between units: a process ranks the units whose first row it
holds, and gets their other rows from its neighbor, as stored numbers. All arithmetic is therefore on whole units, in
the order of one process, and scores are bit-identical for any number of processes. Units that span the rows of several
processes are scored by all of them together (`secateur.patterns.shared`). Otherwise, every process gathers the whole
tensor and ranks all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from secateur._array import Array
from secateur.distributed.pytorch.ranks import Ranks

__all__ = ["RowParts", "ShardLayout", "ShardPeers", "ShardRows", "get_local", "is_sharded", "reshard"]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``.

    Examples:
        >>> is_sharded(torch.ones(2))
        False
    """
    return dist.is_available() and isinstance(tensor, _get_type())


def get_local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a tensor in this process, detached from autograd: the shard of a DTensor, or itself."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local.detach()


def reshard(model: torch.nn.Module) -> None:
    """Free the whole parameters that ``fully_shard`` has gathered for a forward pass, so that shards are in place."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class ShardLayout:
    """How a DTensor is divided, for all tensors of its shape, such as its mask.

    Args:
        tensor: The DTensor.

    Attributes:
        shape: Shape of the whole tensor.
    """

    def __init__(self, tensor: Any) -> None:
        self.shape = tuple(tensor.shape)
        self._mesh, self._placements = tensor.device_mesh, tuple(tensor.placements)

    @staticmethod
    def explain_misfit(tensor: Any) -> str | None:
        """Return why a DTensor cannot be pruned; ``None``: it can."""
        if any(placement.is_partial() for placement in tensor.placements):
            return f"its weight is a DTensor with placements {tensor.placements}, which are sums to be computed"
        return None

    @cached_property
    def ranks(self) -> list[Ranks]:
        """The processes along each axis of the mesh over which the tensor is divided."""
        return [
            Ranks.join(self._mesh.get_group(axis))
            for axis, placement in enumerate(self._placements)
            if not placement.is_replicate() and self._mesh.size(axis) > 1
        ]

    def add(self, count: int) -> int:
        """Return the sum of a count over all shards."""
        total = np.array([count], np.int64)
        for ranks in self.ranks:
            total = ranks.add(total)
        return int(total[0])

    def wrap(self, local: torch.Tensor, shape: tuple[int, ...] | None = None) -> Any:
        """Return a shard as a DTensor of the whole shape, or of another one that is divided in the same way."""
        whole = torch.empty(self.shape if shape is None else shape, device="meta")
        return _get_type().from_local(
            local, self._mesh, self._placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    def gather(self, local: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor, given each shard, on the device of the shard. This is collective."""
        sent = local.view(torch.uint8) if local.dtype == torch.bool else local
        device = self._mesh.device_type if sent.device.type == "cpu" else sent.device
        whole: torch.Tensor = self.wrap(sent.to(device).contiguous()).full_tensor().to(local.device)
        return whole.view(torch.bool) if local.dtype == torch.bool else whole

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the shard of a whole tensor, which every process has. Nothing is sent."""
        from torch.distributed.tensor import Replicate

        kept = whole.view(torch.uint8) if whole.dtype == torch.bool else whole
        device = self._mesh.device_type if kept.device.type == "cpu" else kept.device
        copies = [Replicate()] * len(self._placements)
        same = _get_type().from_local(kept.to(device), self._mesh, copies, run_check=False)
        local = get_local(same.redistribute(placements=self._placements)).to(whole.device)
        return local.view(torch.bool).clone() if whole.dtype == torch.bool else local.clone()

    def find_rows(self) -> RowParts | None:
        """Return the rows that each process holds; ``None``: it does not hold rows, or some process has none."""
        from torch.distributed.tensor import Shard

        divided = [(axis, placement) for axis, placement in enumerate(self._placements) if not placement.is_replicate()]
        if len(divided) != 1 or type(divided[0][1]) is not Shard or divided[0][1].dim != 0:
            return None
        axis, rows = divided[0][0], self.shape[0]
        ranks = Ranks.join(self._mesh.get_group(axis))
        length = -(-rows // ranks.size)
        held = tuple(min(rows, length * rank) for rank in range(ranks.size + 1))
        return None if any(start >= stop for start, stop in pairwise(held)) else RowParts(ranks, held, held)

    def divide_rows(self, step: int) -> RowParts | None:
        """Divide units of `step` consecutive rows; ``None``: not by rows, or some process would have no unit.

        Args:
            step: Number of indices of the first axis in a unit; it divides the length of the axis.
        """
        if (parts := self.find_rows()) is None:
            return None
        starts = tuple(-(-start // step) * step for start in parts.held)
        if any(start >= stop for start, stop in pairwise(starts)):
            return None
        return replace(parts, starts=starts)


@dataclass(frozen=True)
class RowParts:
    """The rows that each process holds, and those that it ranks.

    Attributes:
        ranks: The processes.
        held: The first row that each process holds, and the number of rows.
        starts: The first row that each process ranks, and the number of rows. A process ranks at least one row that it
            holds, so the others are those of the next process.
    """

    ranks: Ranks
    held: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def rows(self) -> range:
        """The rows that this process ranks."""
        return range(self.starts[self.ranks.rank], self.starts[self.ranks.rank + 1])

    @property
    def is_aligned(self) -> bool:
        """Whether each process ranks the rows that it holds."""
        return self.held == self.starts

    def collect(self, local: torch.Tensor) -> torch.Tensor:
        """Return the rows that this process ranks, given those that it holds. If they differ, this is collective."""
        if self.is_aligned:
            return local
        rank = self.ranks.rank
        heads = self._gather_edges(local[: self._count_lent(rank)])
        own = local[self._count_lent(rank) :]
        return own if rank == self.ranks.size - 1 else torch.cat([own, heads[rank + 1][: self._count_lent(rank + 1)]])

    def distribute(self, part: torch.Tensor) -> torch.Tensor:
        """Return the rows that this process holds, given those that it ranks: the inverse of `collect`."""
        if self.is_aligned:
            return part
        rank = self.ranks.rank
        own = self.held[rank + 1] - self.starts[rank]
        tails = self._gather_edges(part[own:])
        return part[:own] if rank == 0 else torch.cat([tails[rank - 1][: self._count_lent(rank)], part[:own]])

    def _count_lent(self, rank: int) -> int:
        """Return how many rows of a process are ranked by the previous one."""
        return self.starts[rank] - self.held[rank]

    def _gather_edges(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows of each process, filled up to the same number."""
        length = max(self._count_lent(rank) for rank in range(self.ranks.size))
        sent = rows.new_zeros((length, *rows.shape[1:]))
        sent[: len(rows)] = rows
        return self.ranks.gather_tensors(sent)


class ShardPeers:
    """The processes that rank the units of a layer; see `secateur.patterns.peers.Peers`.

    Args:
        ranks: The processes.
        count: Number of units over all processes.
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        self._ranks = ranks
        self.count = count

    def add(self, counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Peers.add`."""
        return self._ranks.add(counts)

    def count_before(self, count: int) -> int:
        """See `Peers.count_before`."""
        return sum(self._ranks.gather(count)[: self._ranks.rank])


class ShardRows:
    """The processes that hold the rows of a weight; see `secateur.patterns.peers.RowPeers`.

    Args:
        parts: The rows of each process.
    """

    def __init__(self, parts: RowParts) -> None:
        self._ranks = parts.ranks
        self.rank, self.starts = parts.ranks.rank, list(parts.starts)

    def exchange(self, arrays: Array) -> Array:
        """See `RowPeers.exchange`."""
        return self._ranks.exchange(arrays)

    def gather(self, array: Array) -> list[Array]:
        """See `RowPeers.gather`."""
        if isinstance(array, np.ndarray):
            tensors = self._ranks.gather_tensors(torch.from_numpy(np.ascontiguousarray(array)))
            return [tensor.numpy() for tensor in tensors]
        return self._ranks.gather_tensors(array)


def _get_type() -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor
