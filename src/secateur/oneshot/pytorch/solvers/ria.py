"""Keep the weights that matter most to their output and to their input channel alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.oneshot.pytorch.problem import Problem, Solution
from secateur.oneshot.pytorch.solvers.base import Solver, register_solver

__all__ = ["RIA"]


@register_solver("ria")
@dataclass(frozen=True, kw_only=True)
class RIA(Solver):
    r"""Relative importance and activation, compared within each layer.

    .. math:: \left(\frac{|W_{ij}|}{\sum_k |W_{kj}|} + \frac{|W_{ij}|}{\sum_k |W_{ik}|}\right) \lVert X_j \rVert_2^a

    Attributes:
        power: The exponent a of the activations' norms, ≥ 0.

    Raises:
        ConfigError: `power` is negative.

    Source:
        Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024,
        equations 2 and 4.
    """

    power: float = 0.5

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ConfigError(f"power must be at least 0, found {self.power}.")

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        size = problem.weight.abs()
        tiny = torch.finfo(size.dtype).tiny  # of a channel of nothing but zeros
        of_output = size / size.sum(dim=-1, keepdim=True).clamp(min=tiny)
        scores = []
        for part in problem.parts:
            rows = slice(*part.rows)
            of_input = size[:, rows] / size[:, rows].sum(dim=1, keepdim=True).clamp(min=tiny)
            scores.append((of_input + of_output[:, rows]) * problem.norms[:, None] ** self.power)
        keep = problem.keep(torch.cat(scores, dim=1))
        return Solution(weight=problem.weight * keep, keep=keep)
