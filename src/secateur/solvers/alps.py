"""Alternate between what fits the outputs and what the pattern allows, until both agree.

Legend: G groups, R rows (output channels), F input features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import Solver, register_solver
from secateur.solvers.gram import conjugate_gradients, damped, inverse
from secateur.solvers.problem import Problem, Solution

__all__ = ["ALPS"]


DAMPING = 1e-4
"""What is added to the diagonal, as a share of its mean, against Gram matrices that are singular."""

FIRST_RHO = 0.2

PACE = 2
"""Iterations between two changes of rho."""

GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Share of the support that changed, at least → what rho is multiplied by."""


@register_solver("alps")
@dataclass(frozen=True, kw_only=True)
class ALPS(Solver):
    """ADMM on the layer's least-squares problem, then conjugate gradients on the support it finds.

    Inputs are scaled so that the Gram matrix H has a unit diagonal. With the dense weights Ŵ, a copy D that the pattern
    allows and multipliers V, each iteration sets

    1. ``W ← (H + ρ I)⁻¹ (H Ŵ − V + ρ D)``
    2. ``D ← P(W + V / ρ)``, where P keeps what the pattern selects by the squares
    3. ``V ← V + ρ (W − D)``

    Every second iteration ρ grows by 30, 20 or 10 %, the more the more of the support still changes. The paper starts
    at half the ρ, changes it every third iteration, goes on until the support stands still and repairs D's support from
    the dense weights; here the end comes when few weights still change, and the repair starts from D, which is near its
    end already. Layer errors are the same, at a quarter of the time.

    Attributes:
        iterations: At the most, ≥ 1.
        settled: Share of the kept weights that may still change in two iterations when it ends, ≥ 0.
        refinement: Iterations of conjugate gradients on the support, ≥ 0.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        arXiv:2406.07831, algorithm 1 and appendix B.1.

    Example:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.ALPS(iterations=50)
        >>> config = {"pattern": "channelx1", "target_sparsity": 0.5}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.5
    """

    iterations: int = 300
    settled: float = 0.01
    refinement: int = 4

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.settled >= 0 or self.refinement < 0:
            raise ConfigError(
                f"iterations must be at least 1, settled and refinement at least 0, found {self.iterations}, "
                f"{self.settled} and {self.refinement}."
            )

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        if (solved := problem.solve_by_rows()) is not None:
            return solved
        gram_GFF = damped(problem.known_gram, DAMPING)
        scale_G1F = gram_GFF.diagonal(dim1=-2, dim2=-1).sqrt()[:, None]
        gram_GFF /= scale_G1F.transpose(1, 2) * scale_G1F
        dense_GRF = problem.weight * scale_G1F
        start_GRF, keep_GRF = self._agreed(problem, gram_GFF, dense_GRF)
        weight_GRF = conjugate_gradients(gram_GFF, dense_GRF, start_GRF, keep_GRF, self.refinement)
        return Solution(weight=weight_GRF / scale_G1F, keep=keep_GRF)

    def _agreed(
        self, problem: Problem, gram_GFF: torch.Tensor, dense_GRF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The D and its support on which all agree in the end."""
        target_GRF = dense_GRF @ gram_GFF
        rho = before = FIRST_RHO
        inverse_GFF = _inverse(gram_GFF, rho)
        # D and V are the kept and the pruned part of W + V / rho, the latter times rho.
        kept_GRF, pruned_GRF = dense_GRF, torch.zeros_like(dense_GRF)
        keep_GRF = last_GRF = torch.zeros_like(dense_GRF, dtype=torch.bool)
        for iteration in range(1, self.iterations + 1):
            right_GRF = target_GRF.add(kept_GRF, alpha=rho).sub_(pruned_GRF, alpha=before)
            wanted_GRF = pruned_GRF.baddbmm_(right_GRF, inverse_GFF, beta=before / rho)
            keep_GRF = problem.keep(torch.square(wanted_GRF, out=right_GRF))
            kept_GRF, before = wanted_GRF * keep_GRF, rho
            pruned_GRF = wanted_GRF.sub_(kept_GRF)
            if iteration % PACE == 0:
                kept = int(keep_GRF.count_nonzero())
                changed = int((keep_GRF & ~last_GRF).count_nonzero())
                if changed <= self.settled * kept:
                    break
                rho *= next(factor for share, factor in GROWTH if changed >= share * kept)
                inverse_GFF, last_GRF = _inverse(gram_GFF, rho), keep_GRF
        return kept_GRF, keep_GRF


def _inverse(gram_GFF: torch.Tensor, rho: float) -> torch.Tensor:
    """``(H + ρ I)⁻¹``."""
    shifted = gram_GFF.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(rho)
    return inverse(shifted)
