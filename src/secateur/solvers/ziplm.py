"""ZipLM: remove whole units by structured optimal brain surgeon, and fit the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import UnitSolver, register_solver
from secateur.solvers.ridge import fit_kept_features
from secateur.solvers.unit_elimination import eliminate_units
from secateur.solvers.unit_loss import build_unit_losses
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer, UnitProblem
from secateur.solvers.unit_ranking import rank_by_score

__all__ = ["ZipLM"]


@register_solver("ziplm")
@dataclass(frozen=True, kw_only=True)
class ZipLM(UnitSolver):
    """Remove units greedily by the error of the layers that read them, after their other weights were fitted.

    With ``H = Xᵀ X + λ diag(Xᵀ X)``, removing unit u adds ``tr(W_:u [(H⁻¹)_uu]⁻¹ W_:uᵀ)``, summed over all layers that
    read it. The unit with the lowest sum is removed, H⁻¹ and W are corrected by block elimination, and so on. Layers
    with a bias use the scatter matrix of their inputs, because the bias compensates for the mean. `fit_kept_features`
    computes the weights of the kept units.

    Attributes:
        damping: λ, > 0; ``None``: 3 features per calibration token, in [0.01, 1], because few tokens need more.

    Raises:
        ConfigError: `damping` is not above 0.

    Source:
        Kurtic et al., "ZipLM: Inference-Aware Structured Pruning of Language Models", arXiv:2302.04089, section 3.1 and
        algorithm 1.

    Examples:
        Unit 1 is the sum of units 0 and 2, which have equal weights, so it replaces both:

        >>> import torch
        >>> from secateur.patterns.rounding import KeepRule
        >>> inputs = torch.randn(64, 4)
        >>> inputs[:, 1] = inputs[:, 0] + inputs[:, 2]
        >>> consumer = UnitConsumer(
        ...     name="down",
        ...     weight=torch.ones(2, 4),
        ...     unit_of=torch.arange(4),
        ...     norms=inputs.norm(dim=0),
        ...     gram=inputs.T @ inputs,
        ... )
        >>> rule = KeepRule(units=4)
        >>> problem = UnitProblem(
        ...     name="ffn", rule=rule, consumers=[consumer], scores=torch.ones(4)
        ... )
        >>> solver = ZipLM(damping=1e-6)
        >>> path = solver.rank_units(problem)
        >>> sorted(path.order[:2].tolist()), bool(path.losses[2] < 1e-3 * path.losses[3])
        ([0, 2], True)
    """

    damping: float | None = None

    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]] = "gram"

    def __post_init__(self) -> None:
        if self.damping is not None and not self.damping > 0:
            raise ConfigError(f"damping must be above 0, found {self.damping}.")

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """See `UnitSolver.rank_units`."""
        if not (losses := build_unit_losses(problem, self.damping)):
            return rank_by_score(problem, torch.zeros(problem.units))
        return eliminate_units(losses, problem.rule, problem.max_removed)

    def update_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor) -> ConsumerUpdate:
        """See `UnitSolver.update_consumer`."""
        return fit_kept_features(consumer, keep_U, self.damping)
