"""What a solver is, and the registry of all solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from secateur._registry import Registry
from secateur.solvers.problem import Problem, Solution

__all__ = ["SOLVERS", "Solver", "register_solver"]

SOLVERS: Registry[type[Solver]] = Registry("solver")
"""Solver name → solver class; a class makes a solver with its paper's settings when called without arguments."""

register_solver = SOLVERS.register
"""Class decorator: adds a solver class to `SOLVERS` under a name. A name taken twice raises."""


class Solver(ABC):
    """Chooses what stays in layers that read the same inputs, and what values it has.

    A solver never knows the pattern: it asks the problem to select from scores.

    Attributes:
        needs: What has to be known of a layer's inputs: nothing, the norm of each feature, or their Gram matrix.
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]]

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Solve one problem.

        Args:
            problem: The weights, what is known of their inputs, and the choice of what stays.
        """
