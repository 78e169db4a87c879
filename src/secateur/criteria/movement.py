"""Score weights by whether training moves them away from zero."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["Movement"]


@register_criterion("movement")
class Movement(BaseCriterion):
    """``-Σ w · g`` over all steps: positive if the weight moves away from zero, negative if it moves towards zero.

    Source:
        Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683, equation 4.

    Examples:
        >>> import numpy as np
        >>> from secateur import PruningConfig
        >>> Movement(PruningConfig(), "fc").score(np.array([2.0, 2.0]), np.array([-1.0, 1.0]))
        array([ 2., -2.])
    """

    needs_gradient: ClassVar[bool] = True
    decay: ClassVar[float] = 1.0

    @elementwise
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """See `BaseCriterion.score`."""
        return -(weight * gradient)
