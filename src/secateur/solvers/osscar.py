"""OSSCAR: remove whole units greedily, exchange some of them, and fit the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import register_solver
from secateur.solvers.unit_exchange import exchange_units
from secateur.solvers.unit_loss import build_unit_losses
from secateur.solvers.unit_problem import RemovalPath, UnitProblem
from secateur.solvers.ziplm import ZipLM

__all__ = ["OSSCAR"]

MAX_EXCHANGED_UNITS = 512
"""Maximum number of units of a group to exchange. Of 1536 neurons, exchanges reduced the loss by less than 0.02 %."""


@register_solver("osscar")
@dataclass(frozen=True, kw_only=True)
class OSSCAR(ZipLM):
    """Find the units without which the layers that read them can be fitted best, by greedy and local search.

    With ``H = Xᵀ X + λ diag(Xᵀ X)``, the fit without the units P loses ``tr(W_:P [(H⁻¹)_PP]⁻¹ W_:Pᵀ)``, summed over all
    layers that read them. The path removes units greedily, as in `ZipLM`. For a given number of units, removed units
    are then exchanged for kept ones, each time the pair with the lowest exact loss, until the loss no longer falls or
    `exchanges` pairs were exchanged. In small groups of correlated units, this removes most of the distance to the best
    selection; in groups of more than `MAX_EXCHANGED_UNITS`, greedy selections are almost always optimal in this sense,
    so they stay. `fit_kept_features` computes the weights of the kept units.

    Layers with a bias use the scatter matrix of their inputs, because the bias compensates for the mean.

    Attributes:
        damping: λ, > 0; ``None``: 3 features per calibration token, in [0.01, 1], because few tokens need more.
        exchanges: Maximum number of pairs to exchange in a group, ≥ 0.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Meng et al., "OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial
        Optimization", arXiv:2403.12983. The paper's local search also changes several units at a time while their
        number decreases; this one evaluates all pairs at the final number.

    Examples:
        Units 0 and 1 are the sum and difference of units 2 and 3, so any two of the four are enough:

        >>> import torch
        >>> from secateur.patterns.rounding import KeepRule
        >>> from secateur.solvers import UnitConsumer
        >>> left, right = torch.randn(2, 64, 1)
        >>> inputs = torch.cat([left + right, left - right, left, right], dim=1)
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
        >>> solver = OSSCAR(damping=1e-6)
        >>> path = solver.rank_units(problem)
        >>> bool(path.losses[2] < 1e-3 * path.losses[4])
        True
        >>> int(solver.select_units(problem, path, removed=2).sum())
        2
    """

    exchanges: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exchanges < 0:
            raise ConfigError(f"exchanges must be at least 0, found {self.exchanges}.")

    def select_units(self, problem: UnitProblem, path: RemovalPath, removed: int) -> torch.Tensor:
        """Improve the first units of the path by exchanges; see `UnitSolver.select_units`."""
        keep_U = path.keep(removed)
        if not self.exchanges or problem.units > MAX_EXCHANGED_UNITS:
            return keep_U
        if not (losses := build_unit_losses(problem, self.damping)):
            return keep_U
        return exchange_units(losses, problem.rule, keep_U, self.exchanges).cpu()
