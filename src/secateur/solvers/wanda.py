"""Wanda: rank weights by magnitude times the norm of their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.solvers.base import Solver, UnitSolver, register_solver
from secateur.solvers.problem import Problem, Solution
from secateur.solvers.unit_problem import RemovalPath, UnitProblem
from secateur.solvers.unit_ranking import rank_by_score, sum_by_unit

__all__ = ["Wanda"]


@register_solver("wanda")
@dataclass(frozen=True, kw_only=True)
class Wanda(Solver, UnitSolver):
    """Rank weights by ``|W[i,j]| · ‖X[j]‖`` within each output channel.

    The score of a block is the sum over its weights; blocks are ranked within their row of blocks. The score of a unit
    in several layers, such as a channel or a head, is the sum over all weights that read it, as in the structured
    variant of Wanda that An et al., arXiv:2312.11983, compare with.

    Attributes:
        by_share: For weights of single layers, whether rows may lose different numbers of weights: weights are then
            ranked over the whole layer, by the share of their row's total score that this weight and all lower ones
            have. This is the variant in the authors' code that searches for one threshold for all rows; ranking finds
            the exact number without a search.

    Source:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695, equation 1.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.Wanda()
        >>> config = {"pattern": "2:4"}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.5
    """

    by_share: bool = False

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"
    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]] = "norms"

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        scores = problem.weight.abs() * problem.norms[:, None]
        keep = problem.select(_compute_shares(scores)) if self.by_share else problem.select_per_row(scores)
        return Solution(weight=problem.weight * keep, keep=keep)

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """See `UnitSolver.rank_units`."""
        scores = torch.zeros(problem.units, dtype=torch.float64, device=problem.scores.device)
        for consumer in problem.consumers:
            sizes_F = consumer.weight.abs().sum(dim=0, dtype=torch.float64) * consumer.norms
            scores += sum_by_unit(sizes_F, consumer.unit_of, problem.units).to(scores.device)
        return rank_by_score(problem, scores)


def _compute_shares(scores_GRF: torch.Tensor) -> torch.Tensor:
    """Return, for each weight, the share of its row's total score that this weight and all lower ones have."""
    ordered, order = scores_GRF.sort(dim=-1, stable=True)
    shares = ordered.cumsum(dim=-1)
    shares = shares / shares[..., -1:].clamp(min=torch.finfo(shares.dtype).tiny)
    return torch.empty_like(shares).scatter_(-1, order, shares)
