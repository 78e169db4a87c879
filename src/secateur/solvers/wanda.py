"""Wanda: rank weights by magnitude times the norm of their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.solvers.base import Solver, register_solver
from secateur.solvers.problem import Problem, Solution

__all__ = ["Wanda"]


@register_solver("wanda")
@dataclass(frozen=True)
class Wanda(Solver):
    """Rank weights by ``|W[i,j]| · ‖X[j]‖`` within each output channel.

    The score of a block is the sum over its weights; blocks are ranked within their row of blocks.

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

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        keep = problem.select_per_row(problem.weight.abs() * problem.norms[:, None])
        return Solution(weight=problem.weight * keep, keep=keep)
