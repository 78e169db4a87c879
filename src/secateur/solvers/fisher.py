"""Retraining-free pruning: search by the Fisher information of masks, rearrange, and tune the masks of the kept units.

Legend: N samples, U units, R rows (output channels), F input features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import CalibrationError, ConfigError
from secateur.masking.rearrangement import MAX_REARRANGED_UNITS, rearrange_units
from secateur.solvers.base import UnitSolver, register_solver
from secateur.solvers.gram import factorize
from secateur.solvers.ridge import damp_features
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer, UnitProblem
from secateur.solvers.unit_ranking import rank_by_score, sum_by_unit

__all__ = ["FisherPruning"]


@register_solver("fisher")
@dataclass(frozen=True, kw_only=True)
class FisherPruning(UnitSolver):
    """Prune by the Fisher information of masks of value 1, which multiply the units, in three stages.

    1. Search: with the gradients g of the loss of each sample with respect to the masks, removing a unit costs
       ``½ · mean(g²)``, the diagonal of the Fisher information. The path ignores products of different units.
    2. Rearrangement: for a given number, units are exchanged based on the whole matrix; see `rearrange_units`.
    3. Mask tuning: each layer that reads the units multiplies the kept ones by the factors m that minimize
       ``‖Σ_kept m_u A_u − Σ_all A_u‖² + λ Σ_kept (m_u − 1)² ‖A_u‖²``, where ``A_u = X_u W_uᵀ`` is the contribution of
       unit u to its outputs. If a factor is outside ``[-max_scale, max_scale]``, the layer is not tuned.

    Attributes:
        damping: λ, > 0. The paper damps the normal equations by 1, regardless of the scale of the activations.
        max_scale: Maximum absolute value of a factor, > 0.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", arXiv:2204.09656, sections 4.1 to 4.3.
        The paper tunes towards the outputs of the dense model; here, the inputs of the pruned model pass through the
        dense layer. And the paper stops at the first layer whose factors are out of range; here, later ones are tuned.

    Examples:
        Units 0 and 1 change the loss by less than unit 2, but together by more than units 1 and 2:

        >>> from secateur.patterns.rounding import KeepRule
        >>> gradients = torch.tensor([[1.0, 1.1, -1.2], [1.0, 1.1, -1.2]])
        >>> rule, scores = KeepRule(units=3), torch.ones(3)
        >>> problem = UnitProblem(
        ...     name="ffn", rule=rule, consumers=[], scores=scores, gradients=gradients
        ... )
        >>> solver = FisherPruning()
        >>> path = solver.rank_units(problem)
        >>> path.order.tolist()
        [0, 1, 2]
        >>> solver.select_units(problem, path, removed=2)
        tensor([ True, False, False])
    """

    damping: float = 0.01
    max_scale: float = 10.0

    unit_needs: ClassVar[Literal["nothing", "norms", "gram", "gradients"]] = "gradients"
    repair_needs: ClassVar[Literal["nothing", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if not self.damping > 0 or not self.max_scale > 0:
            raise ConfigError(f"damping and max_scale must be above 0, found {self.damping} and {self.max_scale}.")

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        """See `UnitSolver.rank_units`."""
        return rank_by_score(problem, problem.known_gradients.double().square().mean(dim=0) / 2)

    def select_units(self, problem: UnitProblem, path: RemovalPath, removed: int) -> torch.Tensor:
        """See `UnitSolver.select_units`."""
        keep_U = path.keep(removed)
        if problem.units > MAX_REARRANGED_UNITS:
            return keep_U
        gradients_NU = problem.known_gradients.double().cpu().numpy()
        return torch.from_numpy(rearrange_units(gradients_NU, keep_U.numpy(), parts=problem.rule.parts))

    def update_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor) -> ConsumerUpdate:
        """See `UnitSolver.update_consumer`.

        Raises:
            CalibrationError: The Gram matrix is not finite.
        """
        update = super().update_consumer(consumer, keep_U)
        if bool(keep_U.all()) or not bool(keep_U.any()):
            return update
        factors_U = _fit_factors(consumer, keep_U, self.damping)
        if bool((factors_U.abs() > self.max_scale).any()):
            return update
        scales_F = torch.where(consumer.unit_of < 0, 1.0, factors_U[consumer.unit_of.clamp(min=0)])
        return ConsumerUpdate(weight=update.weight * scales_F.to(update.weight.dtype))


def _fit_factors(consumer: UnitConsumer, keep_U: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the factor of each unit; 1 for those that are removed, of shape (U,)."""
    gram_FF, weight_RF = consumer.known_gram.double(), consumer.weight.double()
    if not bool(torch.isfinite(gram_FF).all()):
        raise CalibrationError(
            f"layer {consumer.name!r}: the inputs of the calibration data must be finite, found nan or infinity. Check "
            f"the data and the weights before this layer."
        )
    products_FF = gram_FF * (weight_RF.T @ weight_RF)
    for _ in range(2):
        products_FF = sum_by_unit(products_FF, consumer.unit_of, len(keep_U)).T
    products_UU = products_FF
    factors_U = products_UU.new_ones(len(keep_U))
    lost_S = products_UU[keep_U][:, ~keep_U].sum(dim=1)
    lower_SS = factorize(damp_features(products_UU[keep_U][:, keep_U], damping))
    factors_U[keep_U] += torch.cholesky_solve(lost_S[:, None], lower_SS)[:, 0]
    return factors_U
