"""Taylor expansion: rank units by the gradient of the loss with respect to their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from secateur.solvers.base import UnitSolver, register_solver
from secateur.solvers.unit_problem import RemovalPath, UnitProblem
from secateur.solvers.unit_ranking import rank_by_score

__all__ = ["TaylorExpansion"]


@register_solver("taylor")
@dataclass(frozen=True)
class TaylorExpansion(UnitSolver):
    """Rank units by the mean over samples of ``|∂loss / ∂m|``, where a mask m of value 1 multiplies the unit.

    To first order, this is how much the loss of a sample changes if the unit is removed. The criterion ``"taylor"``,
    for training, squares the change instead.

    Source:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv:1611.06440,
        equation 6; as gates of channels in Molchanov et al., "Importance Estimation for Neural Network Pruning",
        arXiv:1906.10771, section 3.

    Examples:
        >>> import torch
        >>> from secateur.patterns.rounding import KeepRule
        >>> gradients = torch.tensor([[2.0, -1.0, 0.5], [-2.0, -1.0, 0.0]])
        >>> rule, scores = KeepRule(units=3), torch.ones(3)
        >>> problem = UnitProblem(
        ...     name="ffn", rule=rule, consumers=[], scores=scores, gradients=gradients
        ... )
        >>> path = TaylorExpansion().rank_units(problem)
        >>> path.order.tolist(), path.losses.tolist()
        ([2, 1, 0], [0.0, 0.25, 1.25, 3.25])
    """

    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]] = "gradients"

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """See `UnitSolver.rank_units`."""
        return rank_by_score(problem, problem.known_gradients.double().abs().mean(dim=0))
