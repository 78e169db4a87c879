"""The processes that share the shards of a model, or train replicas of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from secateur._wording import format_list
from secateur.distributed.pytorch.lockstep import check_lockstep
from secateur.distributed.pytorch.ranks import Ranks
from secateur.distributed.pytorch.shards import is_sharded
from secateur.errors import RankError

__all__ = ["RankGroups"]


class RankGroups:
    """The process groups of a model. In a mesh with several axes, there is one group along each of them.

    Every method is collective: all processes must call it, in the same order.

    Args:
        groups: The groups. Together they connect all processes.

    Examples:
        >>> RankGroups.find(nn.Linear(2, 2)).is_alone
        True
    """

    def __init__(self, groups: Sequence[Ranks]) -> None:
        self._groups = [ranks for ranks in groups if ranks.size > 1]

    @classmethod
    def find(cls, model: nn.Module) -> RankGroups:
        """Return the groups of a model: of ``DistributedDataParallel`` around it, or of the meshes of its parameters.

        Args:
            model: The model, with its wrappers.

        Raises:
            RankError: Parameters are sharded, but there is no process group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            if sharded := [name for name, weight in model.named_parameters() if is_sharded(weight)]:
                raise RankError(
                    f"The model is sharded ({format_list(map(repr, sharded), limit=3)}), but there is no process "
                    f"group. Call torch.distributed.init_process_group before the run, and destroy_process_group after "
                    f"it."
                )
            return cls([])
        groups: list[Any] = [
            module.process_group for module in model.modules() if isinstance(module, DistributedDataParallel)
        ]
        for parameter in model.parameters():
            if is_sharded(parameter):
                mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
                groups += [mesh.get_group(axis) for axis in range(mesh.ndim)]
        return cls([Ranks.join(group) for group in dict.fromkeys(groups)])

    @property
    def is_alone(self) -> bool:
        """Whether there is one process."""
        return not self._groups

    def merge(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the union of mappings. If several processes have a key, the value of the lowest rank wins."""
        merged = dict(values)
        for ranks in self._groups:
            merged = {key: value for found in reversed(ranks.gather(merged)) for key, value in found.items()}
        return merged

    def agree(self, values: Mapping[str, Any]) -> None:
        """Compare values on all processes; see `Ranks.agree`."""
        problem = None
        for ranks in self._groups:
            try:
                ranks.agree(values)
            except RankError as error:
                problem = error
        self._raise_on_all(problem, "The comparison of the ranks")

    def check_lockstep(self, action: str, step: int) -> None:
        """See `secateur.distributed.pytorch.lockstep.check_lockstep`."""
        for ranks in self._groups:
            check_lockstep(ranks, action, step)

    @contextmanager
    def fail_together(self, action: str) -> Iterator[None]:
        """Raise on every process if the block, which must not communicate, raises on one; see `Ranks.fail_together`."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.is_alone:
                raise
            problem = error
        self._raise_on_all(problem, action)

    def _raise_on_all(self, problem: Exception | None, action: str) -> None:
        if self.is_alone:
            return
        own = {} if problem is None else {f"rank {dist.get_rank()}": f"{type(problem).__name__}: {problem}"}
        merged = self.merge(own)
        if problem is not None:
            raise problem
        for rank, text in sorted(merged.items()):
            raise RankError(f"{action} failed on {', '.join(sorted(merged))}. {rank.capitalize()}: {text}")
