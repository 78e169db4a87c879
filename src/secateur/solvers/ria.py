"""RIA: rank weights by their importance relative to their output and input channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import Solver, register_solver
from secateur.solvers.problem import Problem, Solution

__all__ = ["RIA"]


@register_solver("ria")
@dataclass(frozen=True, kw_only=True)
class RIA(Solver):
    """Rank weights by relative importance and activations within each layer.

    The score is ``(|W[i,j]| / Σₖ |W[k,j]| + |W[i,j]| / Σₖ |W[i,k]|) · ‖X[j]‖ᵃ``.

    Attributes:
        power: The exponent a of the norms of the inputs, ≥ 0.

    Raises:
        ConfigError: `power` is negative.

    Source:
        Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024,
        equations 2 and 4.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.RIA(power=1.0)
        >>> config = {"pattern": "4x1", "target_sparsity": 0.25}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.25
    """

    power: float = 0.5

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ConfigError(f"power must be at least 0, found {self.power}.")

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        size = problem.weight.abs()
        tiny = torch.finfo(size.dtype).tiny  # for channels that are all zero
        share_of_output = size / size.sum(dim=-1, keepdim=True).clamp(min=tiny)
        scores = []
        for layer in problem.layers:
            rows = slice(*layer.rows)
            share_of_input = size[:, rows] / size[:, rows].sum(dim=1, keepdim=True).clamp(min=tiny)
            scores.append((share_of_input + share_of_output[:, rows]) * problem.norms[:, None] ** self.power)
        keep = problem.select(torch.cat(scores, dim=1))
        return Solution(weight=problem.weight * keep, keep=keep)
