"""The error of a layer's outputs after units were removed and the rest was fitted, for any set of units.

With the damped Gram matrix H of the inputs and ``B = H⁻¹``, removing the features P costs ``tr(W_P [B_PP]⁻¹ W_Pᵀ)``,
which depends on B and ``M = Wᵀ W`` only.

Legend: U units, R rows (output channels), F input features; W features per unit, J = U · W features of all units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.errors import ScoreError
from secateur.solvers.gram import factorize
from secateur.solvers.ridge import center_gram, choose_damping, damp_features
from secateur.solvers.unit_problem import UnitConsumer, UnitProblem

__all__ = ["UnitLoss", "build_unit_losses"]


@dataclass(frozen=True)
class UnitLoss:
    """The matrices that determine the error of one layer.

    Features are ordered by unit, and each unit has the same number of them.

    Attributes:
        inverse: B, the inverse of the damped Gram matrix, restricted to the features of units, float64, of shape
            (J, J).
        energy: M, the products of the columns of the weights, rows weighted by their importance, of the same shape.
        width: Number of features per unit.
    """

    inverse: torch.Tensor
    energy: torch.Tensor
    width: int


def build_unit_losses(problem: UnitProblem, damping: float | None) -> list[UnitLoss]:
    """Return the losses of the layers that read units of a group.

    Args:
        problem: The problem, with Gram matrices.
        damping: Share of the diagonal of the Gram matrices that is added to it, > 0; ``None``: see `choose_damping`.

    Raises:
        ScoreError: Weights or statistics are not finite.
    """
    for consumer in problem.consumers:
        values = (consumer.weight, consumer.known_gram, consumer.importance, consumer.means)
        if not all(value is None or bool(torch.isfinite(value).all()) for value in values):
            raise ScoreError(
                f"group {problem.name!r}: the weights, inputs and gradients of {consumer.name!r} "
                f"must be finite, found nan or infinity. Check the model and the calibration data."
            )
    readers = (consumer for consumer in problem.consumers if bool((consumer.unit_of >= 0).any()))
    return [_build_unit_loss(consumer, problem.units, damping) for consumer in readers]


def _build_unit_loss(consumer: UnitConsumer, units: int, damping: float | None) -> UnitLoss:
    gram_FF = center_gram(consumer)
    # Weights of features that never vary change nothing, so they do not count, in spite of the damping.
    weight_RF = consumer.weight.double() * (gram_FF.diagonal() > 0)
    if consumer.importance is not None:
        weight_RF = weight_RF * consumer.importance.double().sqrt()[:, None]
    inverse_FF = torch.cholesky_inverse(factorize(damp_features(gram_FF, choose_damping(consumer, damping))))
    features_J, width = _order_by_unit(consumer.unit_of, units)
    is_padding_J = features_J < 0
    features_J = features_J.clamp(min=0)
    inverse_JJ = inverse_FF[features_J][:, features_J]
    weight_RJ = weight_RF[:, features_J].masked_fill_(is_padding_J, 0.0)
    if bool(is_padding_J.any()):
        inverse_JJ.masked_fill_(is_padding_J | is_padding_J[:, None], 0.0)
        inverse_JJ.diagonal().masked_fill_(is_padding_J, 1.0)
    return UnitLoss(inverse_JJ, weight_RJ.T @ weight_RJ, width)


def _order_by_unit(unit_of_F: torch.Tensor, units: int) -> tuple[torch.Tensor, int]:
    """Return the features of each unit in turn, padded with -1 to the largest number of features, and this number."""
    order = unit_of_F.argsort(stable=True)
    order = order[int((unit_of_F < 0).sum()) :]
    counts_U = torch.bincount(unit_of_F[order], minlength=units)
    width = int(counts_U.max())
    is_feature_UW = torch.arange(width, device=order.device) < counts_U[:, None]
    features_UW = torch.full((units, width), -1, device=order.device)
    features_UW[is_feature_UW] = order
    return features_UW.reshape(-1), width
