"""Global allocation: one ranking over all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from secateur.allocations.base import Allocation, AllocationTask, register_allocation
from secateur.allocations.scores import compute_layer_scores, compute_mean_score
from secateur.masking.pytorch import ParameterWeight
from secateur.patterns.selection import Scores, find_global_cuts
from secateur.solvers.problem import Problem

__all__ = ["Global"]


@register_allocation("global")
@dataclass(frozen=True)
class Global(Allocation):
    """Prune the units whose removal changes their layer's outputs least, in one ranking over all layers.

    For uncorrelated input features, removing a unit costs ``Σ (|W[i,j]| · ‖X[j]‖)²`` of the output energy. The scores,
    before they are squared, are divided by their mean in the layer, which makes layers comparable; see
    `compute_mean_score`.

    No layer loses more than 98 % of its units, unless ``max_sparsity_ratio_per_op`` is set.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.Global()
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", allocation=shares
        ... )
        >>> report.sparsity
        0.5
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        streams: dict[str, Scores] = {}
        for _, problems in task.iterate_problems():
            for problem in problems:
                streams |= _create_streams(problem, task)
        cuts = find_global_cuts({name: streams[name] for name in task.units}, task.total, task.lower, task.upper)
        return {name: cut.pruned for name, cut in cuts.items()}


def _create_streams(problem: Problem, task: AllocationTask) -> dict[str, Scores]:
    """Return layer → the losses of its units."""
    means = {name: compute_mean_score(scores) for name, scores in compute_layer_scores(problem).items()}
    streams = {}
    for layer in problem.layers:
        squares = _square_scores(layer.name, task, problem.norms / means[layer.name])
        streams[layer.name] = replace(layer.selector, reduction="sum").losses(layer.name, squares)
    return streams


def _square_scores(layer: str, task: AllocationTask, factors_GF: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a function that computes squared scores from the weight in the model, so that none need to be stored."""
    factors_G1F = factors_GF[:, None]

    def compute() -> torch.Tensor:
        with task.load(layer):
            weight = ParameterWeight(layer, task.pattern).canonical()
            weight_GRF = weight.reshape(factors_G1F.shape[0], -1, factors_G1F.shape[2])
            return (weight_GRF * factors_G1F.to(weight.device)).square()

    return compute
