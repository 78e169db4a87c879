"""Rank weights by the configured criterion, ignoring the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.solvers.base import Solver, UnitSolver, register_solver
from secateur.solvers.problem import Problem, Solution
from secateur.solvers.unit_problem import RemovalPath, UnitProblem
from secateur.solvers.unit_ranking import rank_by_score

__all__ = ["Magnitude"]


@register_solver("magnitude")
@dataclass(frozen=True)
class Magnitude(Solver, UnitSolver):
    """Rank units by the configured criterion and reduction, by default the mean magnitude of their weights.

    The score of a unit in several layers, such as a channel, is over all its weights.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.Magnitude()
        >>> config = {"pattern": "2:4"}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.5
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "nothing"
    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]] = "nothing"

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        keep = problem.select(problem.criterion_scores())
        return Solution(weight=problem.weight * keep, keep=keep)

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """See `UnitSolver.rank_units`."""
        return rank_by_score(problem, problem.scores)
