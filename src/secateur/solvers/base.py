"""The base class of solvers and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch

from secateur._registry import Registry
from secateur.solvers.problem import Problem, Solution
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer, UnitProblem

__all__ = ["SOLVERS", "Solver", "UnitSolver", "register_solver"]

SOLVERS: Registry[type[Solver] | type[UnitSolver]] = Registry("solver")
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


class UnitSolver(ABC):
    """Selects the units of a group to remove: channels, neurons or heads, with their slices in several layers.

    A method that solves both kinds of problems is one class that also derives from `Solver`.

    Attributes:
        unit_needs: The statistics it needs: nothing, the norm of each input feature of the consumers, their Gram
            matrix, or the gradients of the loss with respect to masks of the units.
        repair_needs: What `update_consumer` needs in addition: nothing, or the Gram matrix.
    """

    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]]
    repair_needs: ClassVar[Literal["nothing", "gram"]] = "nothing"

    @abstractmethod
    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """Return the order in which the units are removed, and the loss after each.

        Args:
            problem: The units, the layers that read them, and statistics of their inputs.
        """

    def select_units(self, problem: UnitProblem, path: RemovalPath, removed: int) -> torch.Tensor:
        """Return the mask of the kept units, of shape (U,) on the CPU, after `removed` units are removed.

        The default removes the first ones of the path. Override it to improve the selection for this number.
        """
        del problem
        return path.keep(removed)

    def update_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor) -> ConsumerUpdate:
        """Return the new values of a layer that reads the units; the default keeps those of the kept units.

        Args:
            consumer: The layer, with statistics of its inputs in the model whose earlier layers are pruned already.
            keep_U: The mask of the kept units, on the device of the weights.
        """
        return ConsumerUpdate(weight=consumer.weight * consumer.mask_features(keep_U))
