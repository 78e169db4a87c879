"""Linear algebra on Gram matrices that may be singular.

Legend: G groups, R rows, F input features.
"""

from __future__ import annotations

import torch

from secateur.errors import CalibrationError

__all__ = ["conjugate_gradients", "damped", "factorize_inverse", "inverse"]

ATTEMPTS = 6
"""How often a matrix that is not positive definite in float32 gets ten times the damping."""

ROUNDING = 1e-6
"""Share of a sum of float32 products that may be an error."""

SMALL = 144
"""Size up to which a matrix is factorized in one go."""


def damped(gram_GFF: torch.Tensor, share: float) -> torch.Tensor:
    """A copy with `share` of the mean diagonal element added to the diagonal; 1 where all inputs are zero.

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
    """The upper triangular U with ``Uᵀ U`` = inverse of a positive definite matrix.

    It is the inverse of the Cholesky factor of the matrix with its order reversed.

    Raises:
        CalibrationError: The matrix is not positive definite even when damped more, as with infinite values.
    """
    return _inverse_of_factor(matrix_GFF.flip(-1, -2)).flip(-1, -2)


def inverse(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """The inverse of a positive definite matrix.

    Raises:
        CalibrationError: See `factorize_inverse`.
    """
    lower = _inverse_of_factor(matrix_GFF)
    return lower.mT @ lower


def _inverse_of_factor(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """The inverse of the lower Cholesky factor, with more damping if need be."""
    for attempt in range(ATTEMPTS):
        try:
            return _inverse_cholesky(matrix_GFF if attempt == 0 else damped(matrix_GFF, 10.0 ** (attempt - 6)))
        except _NotPositiveError:
            continue
    raise CalibrationError(
        "the Gram matrix of its inputs is not positive definite, even damped by 10 % of its mean diagonal element. "
        "Look for inputs that are enormous or not finite, or give more calibration data."
    )


class _NotPositiveError(Exception):
    """A matrix is not positive definite in float32."""


def _inverse_cholesky(matrix_GFF: torch.Tensor) -> torch.Tensor:
    """The inverse of the Cholesky factor, by halves, so that nearly all of the work is products of matrices."""
    size = matrix_GFF.shape[-1]
    if size <= SMALL:
        lower_GFF, failed = torch.linalg.cholesky_ex(matrix_GFF)
        if bool(failed.any()):
            raise _NotPositiveError
        unit = torch.eye(size, dtype=lower_GFF.dtype, device=lower_GFF.device).expand_as(lower_GFF)
        solved: torch.Tensor = torch.linalg.solve_triangular(lower_GFF, unit, upper=False)
        return solved
    half = size // 2
    inverse_GFF = torch.zeros_like(matrix_GFF)
    first = inverse_GFF[..., :half, :half] = _inverse_cholesky(matrix_GFF[..., :half, :half])
    link = matrix_GFF[..., half:, :half] @ first.mT
    last = inverse_GFF[..., half:, half:] = _inverse_cholesky(matrix_GFF[..., half:, half:] - link @ link.mT)
    inverse_GFF[..., half:, :half] = -(last @ link @ first)
    return inverse_GFF


def conjugate_gradients(
    gram_GFF: torch.Tensor, target_GRF: torch.Tensor, weight_GRF: torch.Tensor, keep_GRF: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Weights on a fixed support with less of ``‖X (W − Ŵ)ᵀ‖²``, for all rows at once.

    Preconditioned with the diagonal of the Gram matrix. The error of each row only ever falls: a row rests once what is
    left to gain, or the direction to gain it in, is lost in rounding.

    Args:
        gram_GFF: ``Xᵀ X``.
        target_GRF: The dense weights W.
        weight_GRF: Where to start; zero outside the support.
        keep_GRF: The support.
        iterations: How many; each costs one product with the Gram matrix.

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
    least, going = ROUNDING**2 * energy, torch.ones_like(energy, dtype=torch.bool)
    for _ in range(iterations):
        image = (step @ gram_GFF).mul_(keep_GRF)
        curvature = (step * image).sum(dim=-1, keepdim=True)
        going &= (energy > least) & (curvature > ROUNDING * (step.square() @ diagonal_GF[:, :, None]))
        length = torch.where(going, energy / curvature, 0.0)
        weight.addcmul_(length, step)
        residual.addcmul_(length, image, value=-1)
        before, scaled = energy, residual * inverse_G1F
        energy = (residual * scaled).sum(dim=-1, keepdim=True)
        step = scaled.addcmul_(torch.where(before > 0, energy / before, 0.0), step)
    return weight
