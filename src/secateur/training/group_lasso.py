"""Group lasso, which shrinks whole units towards zero while the model trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

from secateur._array import Array, concat_chunks, namespace
from secateur.patterns.reduction import pairwise_sum
from secateur.patterns.tiling import Units

__all__ = ["compute_shrinkage"]


def compute_shrinkage(units: Units, weights: Mapping[str, Array], strength: float) -> dict[str, Array]:
    """Compute the factors of one proximal step of ``strength · Σ_u √size_u · ‖w_u‖₂``.

    The factor is 0 for units whose norm is below ``strength · √size``, and ``1 - strength · √size / norm`` for others.

    Args:
        units: The units.
        weights: Layer → (O, K, I) weights, for each part of the units.
        strength: Regularization coefficient times learning rate, ≥ 0.

    Returns:
        Layer → factors in [0, 1], of shape (O, K, I).

    Source:
        Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006, for the penalty;
        Parikh & Boyd, "Proximal Algorithms", 2014, section 6.5.4, for the step.
    """
    squares = {layer: weight * weight for layer, weight in weights.items()}
    unit_squares = concat_chunks(list(units.scores(squares, pairwise_sum)))
    xp = namespace(unit_squares)
    norms = xp.sqrt(unit_squares)
    threshold = strength * math.sqrt(units.unit_size)
    factors = xp.where(norms > threshold, 1.0 - threshold / xp.where(norms > 0, norms, 1.0), 0.0)
    return units.expand(xp.astype(factors, norms.dtype, copy=False))
