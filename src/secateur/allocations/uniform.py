"""Uniform allocation: the same sparsity in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.allocations.base import Allocation, AllocationTask, register_allocation

__all__ = ["Uniform"]


@register_allocation("uniform")
@dataclass(frozen=True)
class Uniform(Allocation):
    """Prune every layer to the target. Each count is rounded, so the total may be off by half a unit per layer.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.Uniform()
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", allocation=shares
        ... )
        >>> report.sparsity
        0.5
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "nothing"

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        lower, budget = task.lower, task.pattern.budget
        return {name: max(budget.count_locally(name, task.target), lower[name]) for name in budget.units}
