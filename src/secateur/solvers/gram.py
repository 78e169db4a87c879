"""Linear algebra on Gram matrices of layer inputs, which may be singular.

The matrices are accumulated by `secateur.oneshot.pytorch.calibration.input_statistics`.

Legend: G groups, R rows, F input features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from secateur.errors import CalibrationError

__all__ = ["conjugate_gradients", "damp", "factorize", "factorize_inverse", "invert"]

MAX_ATTEMPTS = 6
"""Maximum number of factorizations of a matrix that is not positive definite in float32; damping grows tenfold."""

ROUNDING = 1e-6
"""Relative rounding error of a sum of float32 products."""

MAX_UNSPLIT_SIZE = 144
"""Size up to which a matrix is factorized without splitting."""


def damp(gram_GFF: torch.Tensor, share: float) -> torch.Tensor:
    """Return a copy with `share` of the mean diagonal element added to the diagonal, or 1 if all inputs are zero.

    Args:
        gram_GFF: Gram matrices.
        share: Above 0.
    """
    matrix = gram_GFF.clone()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(dim=-1, keepdim=True)
    diagonal += torch.where(level > 0, share * level, torch.ones_like(level))
    return matrix


def factorize_inverse(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U for which ``Uᵀ U`` is the inverse of a positive definite matrix.

    U is the inverse of the Cholesky factor of the matrix in reverse order.

    Raises:
        CalibrationError: The matrix is not positive definite even with more damping, e.g. because of infinite values.
    """
    return _invert_factor(matrix_GFF.flip(-1, -2)).flip(-1, -2)


def invert(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a positive definite matrix.

    Raises:
        CalibrationError: See `factorize_inverse`.
    """
    lower = _invert_factor(matrix_GFF)
    return lower.mT @ lower


def factorize(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """Return the lower Cholesky factor of a positive definite matrix.

    Raises:
        CalibrationError: See `factorize_inverse`.
    """
    return _damp_until_positive(matrix_GFF, _compute_cholesky)


def _invert_factor(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """Return the inverse of the lower Cholesky factor, with more damping if necessary."""
    return _damp_until_positive(matrix_GFF, _invert_cholesky)


def _damp_until_positive(matrix_GFF: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the result for a matrix, with more damping as long as it is not positive definite."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            return compute(matrix_GFF if attempt == 0 else damp(matrix_GFF, 10.0 ** (attempt - 6)))
        except _NotPositiveError:
            continue
    raise CalibrationError(
        "The Gram matrix of the inputs is not positive definite, even damped by 10 % of its mean diagonal element. "
        "Check for huge or non-finite inputs, or provide more calibration data."
    )


class _NotPositiveError(Exception):
    """A matrix is not positive definite in float32."""


def _compute_cholesky(matrix_GFF: torch.Tensor) -> torch.Tensor:
    result: tuple[torch.Tensor, torch.Tensor] = torch.linalg.cholesky_ex(matrix_GFF)
    lower_GFF, failed = result
    if bool(failed.any()):
        raise _NotPositiveError
    return lower_GFF


def _invert_cholesky(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """Return the inverse of the Cholesky factor, computed by halves so that most of the work is matrix products."""
    size = matrix_GFF.shape[-1]
    if size <= MAX_UNSPLIT_SIZE:
        lower_GFF = _compute_cholesky(matrix_GFF)
        unit = torch.eye(size, dtype=lower_GFF.dtype, device=lower_GFF.device).expand_as(lower_GFF)
        solved: torch.Tensor = torch.linalg.solve_triangular(lower_GFF, unit, upper=False)
        return solved
    half = size // 2
    inverse_GFF = torch.zeros_like(matrix_GFF)
    first = inverse_GFF[..., :half, :half] = _invert_cholesky(matrix_GFF[..., :half, :half])
    link = matrix_GFF[..., half:, :half] @ first.mT
    last = inverse_GFF[..., half:, half:] = _invert_cholesky(matrix_GFF[..., half:, half:] - link @ link.mT)
    inverse_GFF[..., half:, :half] = -(last @ link @ first)
    return inverse_GFF


def conjugate_gradients(
    gram_GFF: torch.Tensor, target_GRF: torch.Tensor, weight_GRF: torch.Tensor, keep_GRF: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Reduce ``‖X (W − Ŵ)ᵀ‖²`` on a fixed support, for all rows at once.

    The Gram matrix is preconditioned with its diagonal. The error of a row never increases: a row stops once
    its remaining gain, or its search direction, is lost in rounding errors.

    Args:
        gram_GFF: ``Xᵀ X``.
        target_GRF: The dense weights Ŵ.
        weight_GRF: The initial weights W; zero outside the support.
        keep_GRF: The support.
        iterations: Number of iterations; each costs one product with the Gram matrix.

    Source:
        Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        arXiv:2406.07831, algorithm 2.
    """
    diagonal_GF = gram_GFF.diagonal(dim1=-2, dim2=-1)
    inverse_G1F = torch.where(diagonal_GF > 0, 1 / diagonal_GF, 0.0)[:, None]
    weight = weight_GRF.clone()
    residual = ((target_GRF - weight) @ gram_GFF).mul_(keep_GRF)
    step = residual * inverse_G1F
    energy = (residual * step).sum(dim=-1, keepdim=True)
    threshold, is_active = ROUNDING**2 * energy, torch.ones_like(energy, dtype=torch.bool)
    for _ in range(iterations):
        image = (step @ gram_GFF).mul_(keep_GRF)
        curvature = (step * image).sum(dim=-1, keepdim=True)
        is_active &= (energy > threshold) & (curvature > ROUNDING * (step.square() @ diagonal_GF[:, :, None]))
        length = torch.where(is_active, energy / curvature, 0.0)
        weight.addcmul_(length, step)
        residual.addcmul_(length, image, value=-1)
        last_energy, scaled = energy, residual * inverse_G1F
        energy = (residual * scaled).sum(dim=-1, keepdim=True)
        step = scaled.addcmul_(torch.where(last_energy > 0, energy / last_energy, 0.0), step)
    return weight
