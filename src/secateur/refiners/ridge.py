"""Ridge: fit the kept weights of a layer whose inputs lost units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.refiners.base import UnitRefiner, register_refiner
from secateur.solvers.ridge import fit_kept_features
from secateur.solvers.unit_problem import ConsumerUpdate, UnitConsumer

__all__ = ["Ridge"]


@register_refiner("ridge")
@dataclass(frozen=True, kw_only=True)
class Ridge(UnitRefiner):
    """Fit the weights of the kept units to the dense outputs, by ridge regression.

    With kept features S, pruned features P, and the Gram matrix H of the inputs in the pruned model, ``W'_S = W_S + W_P
    H_PS (H_SS + λ diag(H_SS))⁻¹``. Layers with a bias get the optimum over weights and bias. It replaces the previous
    values of these weights. OSSCAR and ZipLM do the same without this refiner.

    Attributes:
        damping: λ, > 0; ``None``: 3 features per calibration token, in [0.01, 1], because few tokens need more.

    Raises:
        ConfigError: `damping` is not above 0.

    Source:
        Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics 12, 1970,
        shrunk towards the dense weights instead of zero.

    Examples:
        The removed unit equals the kept one, which takes over its weight:

        >>> import torch
        >>> from secateur.solvers import ConsumerUpdate, UnitConsumer
        >>> inputs = torch.randn(64, 1).repeat(1, 2)
        >>> consumer = UnitConsumer(
        ...     name="down",
        ...     weight=torch.tensor([[1.0, 2.0]]),
        ...     unit_of=torch.arange(2),
        ...     norms=inputs.norm(dim=0),
        ...     gram=inputs.T @ inputs,
        ... )
        >>> keep = torch.tensor([True, False])
        >>> update = ConsumerUpdate(weight=consumer.weight * keep)
        >>> Ridge(damping=1e-6).refine_consumer(consumer, keep, update).weight.round()
        tensor([[3., 0.]])
    """

    damping: float | None = None

    unit_needs: ClassVar[Literal["norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if self.damping is not None and not self.damping > 0:
            raise ConfigError(f"damping must be above 0, found {self.damping}.")

    def refine_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor, update: ConsumerUpdate) -> ConsumerUpdate:
        """See `UnitRefiner.refine_consumer`."""
        del update
        return fit_kept_features(consumer, keep_U, self.damping)
