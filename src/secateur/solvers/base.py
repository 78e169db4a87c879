"""The base class of solvers and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from secateur._registry import Registry
from secateur.solvers.problem import Problem, Solution

__all__ = ["SOLVERS", "Solver", "register_solver"]

SOLVERS: Registry[type[Solver]] = Registry("solver")
"""Solver name → solver class. Called without arguments, a class uses the default settings of its paper."""

register_solver = SOLVERS.register
"""Class decorator: register a solver class in `SOLVERS` under a name. Raises if the name is taken."""


class Solver(ABC):
    """Selects the weights to keep in layers that read the same inputs, and computes their new values.

    A solver does not know the pattern: it asks the problem to select weights by score.

    Attributes:
        needs: The input statistics it needs: nothing, the norm of each input feature, or their Gram matrix.
    """

    needs: ClassVar[Literal["nothing", "norms", "gram"]]

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Solve one problem.

        Args:
            problem: The weights, statistics of their inputs, and selection by score.
        """
