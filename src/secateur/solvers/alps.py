"""ALPS: ADMM on the least-squares problem of each layer, then conjugate gradients.

Legend: G groups, R rows (output channels), F input features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import Solver, register_solver
from secateur.solvers.gram import conjugate_gradients, damp, invert
from secateur.solvers.problem import Problem, Solution

__all__ = ["ALPS"]


DAMPING = 1e-4
"""Damping of the Gram matrix, which may be singular, as a share of its mean diagonal element."""

FIRST_RHO = 0.2

RHO_INTERVAL = 2
"""Iterations between updates of rho."""

GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Share of the support that changed, at least → factor for rho."""


@register_solver("alps")
@dataclass(frozen=True, kw_only=True)
class ALPS(Solver):
    """Find a support with ADMM, then refine the weights on it with conjugate gradients.

    Inputs are scaled so that the Gram matrix H has a unit diagonal. With the dense weights Ŵ, a copy D that fits the
    pattern and multipliers V, each iteration sets

    1. ``W ← (H + ρ I)⁻¹ (H Ŵ − V + ρ D)``
    2. ``D ← P(W + V / ρ)``, where P keeps the weights that the pattern selects by their squares
    3. ``V ← V + ρ (W − D)``

    Every second iteration ρ grows by 30, 20 or 10 %, depending on how much of the support still changes. The paper
    starts with half that ρ, updates it every third iteration, iterates until the support is stable and refines from the
    dense weights. This implementation stops once few weights change and refines from D, which is close to the optimum.
    Layer errors are the same, in a quarter of the time.

    Attributes:
        iterations: Maximum number of iterations, ≥ 1.
        tolerance: Stop when at most this share of the kept weights changes within two iterations, ≥ 0.
        refinement: Iterations of conjugate gradients on the support, ≥ 0.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        arXiv:2406.07831, algorithm 1 and appendix B.1.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.ALPS(iterations=50)
        >>> config = {"pattern": "channelx1", "target_sparsity": 0.5}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.5
    """

    iterations: int = 300
    tolerance: float = 0.01
    refinement: int = 4

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.tolerance >= 0 or self.refinement < 0:
            raise ConfigError(
                f"iterations must be at least 1, tolerance and refinement at least 0, found {self.iterations}, "
                f"{self.tolerance} and {self.refinement}."
            )

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        if (solution := problem.solve_by_rows()) is not None:
            return solution
        gram_GFF = damp(problem.known_gram, DAMPING)
        scale_G1F = gram_GFF.diagonal(dim1=-2, dim2=-1).sqrt()[:, None]
        gram_GFF /= scale_G1F.transpose(1, 2) * scale_G1F
        dense_GRF = problem.weight * scale_G1F
        start_GRF, keep_GRF = self._find_support(problem, gram_GFF, dense_GRF)
        weight_GRF = conjugate_gradients(gram_GFF, dense_GRF, start_GRF, keep_GRF, self.refinement)
        return Solution(weight=weight_GRF / scale_G1F, keep=keep_GRF)

    def _find_support(
        self, problem: Problem, gram_GFF: torch.Tensor, dense_GRF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the final D and its support."""
        target_GRF = dense_GRF @ gram_GFF
        rho = last_rho = FIRST_RHO
        inverse_GFF = _invert_shifted(gram_GFF, rho)
        # D is the kept part of W + V / rho, and V is the pruned part times rho.
        kept_GRF, pruned_GRF = dense_GRF, torch.zeros_like(dense_GRF)
        keep_GRF = last_GRF = torch.zeros_like(dense_GRF, dtype=torch.bool)
        for iteration in range(1, self.iterations + 1):
            right_GRF = target_GRF.add(kept_GRF, alpha=rho).sub_(pruned_GRF, alpha=last_rho)
            unmasked_GRF = pruned_GRF.baddbmm_(right_GRF, inverse_GFF, beta=last_rho / rho)
            keep_GRF = problem.select(torch.square(unmasked_GRF, out=right_GRF))
            kept_GRF, last_rho = unmasked_GRF * keep_GRF, rho
            pruned_GRF = unmasked_GRF.sub_(kept_GRF)
            if iteration % RHO_INTERVAL == 0:
                kept_count = int(keep_GRF.count_nonzero())
                changed_count = int((keep_GRF & ~last_GRF).count_nonzero())
                if changed_count <= self.tolerance * kept_count:
                    break
                rho *= next(factor for share, factor in GROWTH if changed_count >= share * kept_count)
                inverse_GFF, last_GRF = _invert_shifted(gram_GFF, rho), keep_GRF
        return kept_GRF, keep_GRF


def _invert_shifted(gram_GFF: torch.Tensor, rho: float) -> torch.Tensor:
    """Return ``(H + ρ I)⁻¹``."""
    shifted = gram_GFF.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(rho)
    return invert(shifted)
