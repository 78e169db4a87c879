"""Repair the layers that read pruned units by ridge regression.

Legend: R rows (output channels), F input features, S kept features, P pruned features.
"""

from __future__ import annotations

import torch

from secateur.errors import CalibrationError
from secateur.solvers.gram import factorize
from secateur.solvers.unit_problem import ConsumerUpdate, UnitConsumer

__all__ = ["center_gram", "choose_damping", "damp_features", "fit_kept_features", "shift_bias"]

ROUNDING = 1e-6
"""Share of the energy of a feature below which its variance is a rounding error of float32 sums."""

MIN_DAMPING = 0.01
"""Minimum damping that is chosen."""

NOISE = 3.0
"""Damping times tokens per feature with the lowest error on held-out text, within 2 %, in layers of SmolLM2-135M."""


def center_gram(consumer: UnitConsumer) -> torch.Tensor:
    """Return the Gram matrix that errors of a layer are measured with, in float64, of shape (F, F).

    A bias compensates for the mean of an error, so for a layer with a bias this is the scatter matrix, ``Xᵀ X − rows ·
    μ μᵀ``. Features that cannot be distinguished from constants have zero rows and columns.

    Args:
        consumer: The layer, with its Gram matrix.

    Raises:
        CalibrationError: The matrix is not finite.
    """
    gram_FF = consumer.known_gram.double()
    if not bool(torch.isfinite(gram_FF).all()):
        raise CalibrationError(
            f"layer {consumer.name!r}: the inputs of the calibration data must be finite, found nan or infinity. Check "
            f"the data and the weights before this layer."
        )
    energy_F = gram_FF.diagonal().clone()
    if consumer.has_bias and consumer.means is not None:
        means_F = consumer.means.double()
        gram_FF = torch.addr(gram_FF, means_F, means_F, alpha=-consumer.rows)
    is_varying_F = gram_FF.diagonal() > ROUNDING * energy_F
    if not bool(is_varying_F.all()):
        gram_FF = gram_FF * is_varying_F * is_varying_F[:, None]
    return gram_FF


def damp_features(gram_FF: torch.Tensor, share: float) -> torch.Tensor:
    """Return a copy with each diagonal element multiplied by ``1 + share``; zero elements become 1.

    So features of any scale are damped equally, as if each had independent noise with `share` of its energy.
    """
    damped_FF = gram_FF.clone()
    diagonal_F = damped_FF.diagonal()
    diagonal_F.copy_(torch.where(diagonal_F > 0, diagonal_F * (1 + share), 1.0))
    return damped_FF


def choose_damping(consumer: UnitConsumer, damping: float | None) -> float:
    """Return the damping of a layer, by default the one that suits the amount of calibration data.

    Args:
        consumer: The layer.
        damping: The configured value; ``None``: `NOISE` features per token, in [0.01, 1].
    """
    if damping is not None:
        return damping
    return min(1.0, max(MIN_DAMPING, NOISE * len(consumer.unit_of) / max(1, consumer.rows)))


def fit_kept_features(consumer: UnitConsumer, keep_U: torch.Tensor, damping: float | None) -> ConsumerUpdate:
    """Fit the weights of the kept units, and the bias, to the dense outputs of a layer.

    Of all weights that are zero for the removed units, the result W' minimizes
    ``‖X (W' − W)ᵀ‖² + λ Σ_j ‖X_:j‖² ‖W'_:j − W_:j‖²``. With ``H = Xᵀ X`` this is
    ``W'_S = W_S + W_P H_PS (H_SS + λ diag(H_SS))⁻¹``. For λ = 0 it equals ``W H_:S H_SS⁻¹``. For λ > 0 it tends to the
    dense weights instead of zero, so weights that cannot help stay as they are. If the layer has a bias and the means μ
    are known, H is the scatter matrix, and the bias changes by ``(W − W') μ``: the optimum over weights and bias.

    With a correction C, the outputs are fitted to ``X Wᵀ + C`` instead.

    Args:
        consumer: The layer, with its Gram matrix.
        keep_U: The mask of the kept units.
        damping: λ, > 0; ``None``: see `choose_damping`.

    Raises:
        CalibrationError: The Gram matrix is not finite.
    """
    keep_F = consumer.mask_features(keep_U)
    stay_S, pruned_P = keep_F.nonzero()[:, 0], (~keep_F).nonzero()[:, 0]
    dense_RF = consumer.weight.double()
    fitted_RF = dense_RF * keep_F
    if len(stay_S) and len(pruned_P):
        gram_FF = center_gram(consumer)
        damped_FF = damp_features(gram_FF, choose_damping(consumer, damping))
        lost_RS = dense_RF[:, pruned_P] @ gram_FF[pruned_P][:, stay_S]
        if consumer.correction is not None:
            lost_RS += (_center_correction(consumer) * (gram_FF.diagonal() > 0))[:, stay_S]
        fitted_RF[:, stay_S] += torch.cholesky_solve(lost_RS.T, factorize(damped_FF[stay_S][:, stay_S])).T
    bias_change = shift_bias(consumer, fitted_RF)
    if bias_change is not None and consumer.correction_mean is not None:
        bias_change = bias_change + consumer.correction_mean.to(bias_change)
    return ConsumerUpdate(weight=fitted_RF.to(consumer.weight.dtype), bias_change=bias_change)


def _center_correction(consumer: UnitConsumer) -> torch.Tensor:
    """Return the products of inputs and correction, without their means if a bias makes up for these, in float64."""
    assert consumer.correction is not None
    products_RF = consumer.correction.double()
    if consumer.has_bias and consumer.means is not None and consumer.correction_mean is not None:
        means = consumer.correction_mean.double(), consumer.means.double()
        products_RF = torch.addr(products_RF, *means, alpha=-consumer.rows)
    return products_RF


def shift_bias(consumer: UnitConsumer, weight_RF: torch.Tensor) -> torch.Tensor | None:
    """Return ``(W − W') μ``, which keeps the mean output, of shape (R,); ``None`` without a bias or means."""
    if not consumer.has_bias or consumer.means is None:
        return None
    change_RF = consumer.weight.double() - weight_RF.double()
    return (change_RF @ consumer.means.double()).to(consumer.weight.dtype)
