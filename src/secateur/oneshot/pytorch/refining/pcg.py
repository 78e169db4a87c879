"""The kept weights of a layer, fitted to its outputs."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import ConfigError
from secateur.oneshot.pytorch.linalg import conjugate_gradients
from secateur.oneshot.pytorch.problem import Problem, Solution
from secateur.oneshot.pytorch.refining.base import LayerRefiner, register_refiner

__all__ = ["PCG"]


@register_refiner("pcg")
@dataclass(frozen=True, kw_only=True)
class PCG(LayerRefiner):
    r"""Preconditioned conjugate gradients on :math:`\lVert X (W - \hat W)^\top\rVert^2`, the support fixed.

    Attributes:
        iterations: ≥ 1; each costs one product of weights and Gram matrix.

    Raises:
        ConfigError: `iterations` is less than 1.

    Source:
        Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        arXiv:2406.07831, algorithm 2.
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"iterations must be at least 1, found {self.iterations}.")

    def refine(self, problem: Problem, solution: Solution) -> Solution:
        """See `LayerRefiner.refine`."""
        weight_GRF = conjugate_gradients(
            problem.known_gram, problem.weight, solution.weight, solution.keep, self.iterations
        )
        return Solution(weight=weight_GRF, keep=solution.keep)
