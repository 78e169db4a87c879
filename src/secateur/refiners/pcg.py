"""PCG: fit the kept weights of a layer to its dense outputs."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import ConfigError
from secateur.refiners.base import LayerRefiner, register_refiner
from secateur.solvers.gram import conjugate_gradients
from secateur.solvers.problem import Problem, Solution

__all__ = ["PCG"]


@register_refiner("pcg")
@dataclass(frozen=True, kw_only=True)
class PCG(LayerRefiner):
    """Minimize ``‖X (W − Ŵ)ᵀ‖²`` on the fixed support by preconditioned conjugate gradients.

    Attributes:
        iterations: Number of iterations, ≥ 1; each costs one product of weights and Gram matrix.

    Raises:
        ConfigError: `iterations` is less than 1.

    Source:
        Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        arXiv:2406.07831, algorithm 2.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> refiner = secateur.refiners.PCG(iterations=5)
        >>> config = {"pattern": "2:4"}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", refine=refiner
        ... )
        >>> report.sparsity
        0.5
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
