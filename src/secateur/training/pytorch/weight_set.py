"""The weights that a pruner prunes, and whether the run can continue with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateur.distributed.pytorch.rank_groups import RankGroups
from secateur.errors import LayerError
from secateur.masking.run import refuse_nan
from secateur.planning.planner import Plan
from secateur.training.pytorch.sharded_weight import ShardedParameter, make_weight
from secateur.training.pytorch.weight import TrainedParameter, find_slots

__all__ = ["WeightSet"]

ORDER = (
    "Change the model before secateur.prepare, or after finalize() or close() of the pruner. The order is: load, shard "
    "and wrap the model, create the optimizer, call secateur.prepare."
)


class WeightSet(dict[str, TrainedParameter]):
    """Layer → its pruned weight.

    Args:
        model: The model.
        weights: Layer → its weight.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, TrainedParameter]) -> None:
        super().__init__(weights)
        self.model = model

    @classmethod
    def find(cls, model: nn.Module, plan: Plan, optimizers: tuple[Any, ...], groups: RankGroups) -> WeightSet:
        """Find the weights to prune and their optimizers.

        Raises:
            LayerError: A weight is not in any optimizer.
            ScoreError: A weight contains ``nan``.
            RankError: It raised in another process, or a weight that is not sharded differs there.
        """
        with groups.fail_together("secateur.prepare"):
            slots = find_slots(plan, optimizers)
            patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
            weights = {name: make_weight(name, pattern, slots[name]) for name, pattern in patterns.items()}
            refuse_nan(weights)
        _refuse_other_values(weights, groups)
        return cls(model, weights)

    @property
    def are_sharded(self) -> bool:
        """Whether a weight is divided over processes."""
        return any(isinstance(weight, ShardedParameter) for weight in self.values())

    def find_trained(self, optimizer: Any) -> dict[str, TrainedParameter]:
        """Return the weights of an optimizer by layer; ``None``: of all.

        Weights that no optimizer had when the run started, and that are trained now, belong to every optimizer.
        """
        return {name: weight for name, weight in self.items() if optimizer is None or weight.is_trained_by(optimizer)}

    def find_problems(self, free: Collection[str], optimizer: Any = None) -> dict[str, str]:
        """Find the weights of an optimizer, ``None``: of all, with which the run cannot continue: layer → why.

        Args:
            free: Layers in which no zeros are kept, which may change freely.
            optimizer: The optimizer.
        """
        weights = self.find_trained(optimizer).items()
        problems = {name: weight.find_problem(self.model) for name, weight in weights if name not in free}
        return {name: problem for name, problem in problems.items() if problem is not None}

    def refuse_changed(self, free: Collection[str], optimizer: Any = None) -> None:
        """Raise `LayerError` if the run cannot continue with a weight, such as because it was replaced.

        Args:
            free: See `find_problems`.
            optimizer: See `find_problems`.
        """
        for name, problem in self.find_problems(free, optimizer).items():
            raise LayerError(f"layer {name!r}: {problem}. {ORDER}")

    def refuse_moved(self, free: Collection[str], other: Optimizer) -> None:
        """Raise `LayerError` if an optimizer that was not passed to `secateur.prepare` has taken over a weight.

        Weights that their first optimizer still has are unaffected; weights without an optimizer count as frozen.

        Args:
            free: See `find_problems`.
            other: The optimizer.
        """
        trained = _get_weight_ids([other])
        for name, weight in self.items():
            known = weight.slot.optimizers
            if id(weight.parameter) not in trained or name in free or not known:
                continue
            if id(weight.parameter) not in _get_weight_ids(known):
                raise LayerError(
                    f"layer {name!r}: its weight was moved from the {type(known[0]).__name__} that secateur.prepare "
                    f"got to another {type(other).__name__}. {ORDER}"
                )


def _refuse_other_values(weights: Mapping[str, TrainedParameter], groups: RankGroups) -> None:
    """Raise `RankError` if a weight that is not sharded differs between processes.

    Such weights, as in expert parallelism, would be pruned differently in each process.
    """
    plain = {name: weight for name, weight in weights.items() if not isinstance(weight, ShardedParameter)}
    if plain and not groups.is_alone:
        groups.agree({f"weight of layer {name!r}": _sum_bits(weight.stored) for name, weight in plain.items()})


def _sum_bits(tensor: torch.Tensor) -> int:
    """Return the sum of the numbers of a tensor as integers of the same size."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.contiguous().view(kinds[tensor.element_size()]).sum(dtype=torch.int64))


def _get_weight_ids(optimizers: Iterable[Any]) -> set[int]:
    return {id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]}
