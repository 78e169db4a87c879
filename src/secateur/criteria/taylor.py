"""Score units by a first-order Taylor expansion of the loss, squared or in absolute value."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array, namespace
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["MaskGradient", "Taylor"]


@register_criterion("taylor")
class Taylor(BaseCriterion):
    """``score ← 0.9 · score + (Σ w · g)²``, the sum over a unit's weights.

    This is the squared first-order change of the loss if the whole unit is removed. Effects of opposite sign within a
    unit cancel, unlike in sums of ``|w · g|``. The definition includes the reduction, so ``criterion_reduce_type`` is
    ignored.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, equation 8.
    """

    needs_gradient: ClassVar[bool] = True
    decay: ClassVar[float] = 0.9
    reduction: ClassVar[str | None] = "sum"

    @elementwise
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """See `BaseCriterion.score`."""
        return weight * gradient

    def unit_score(self, scores: Array) -> Array:
        """Square the sum of each unit.

        Examples:
            >>> from secateur import PruningConfig
            >>> Taylor(PruningConfig(), "fc").unit_score(3.0)
            9.0
        """
        return scores * scores


@register_criterion("mask_gradient")
class MaskGradient(Taylor):
    """``score ← 0.9 · score + |Σ w · g|``, the sum over a unit's weights.

    If a unit's weights were multiplied by a mask variable of value 1, the gradient of the loss with respect to that
    variable would be ``Σ w · g``. Unlike in `Taylor`, a single batch with a large gradient does not dominate the sum
    over steps. The definition includes the reduction, so ``criterion_reduce_type`` is ignored.

    Source:
        Michel et al., "Are Sixteen Heads Really Better than One?", arXiv:1905.10650, equation 2; accumulated over
        steps as ``block_mask`` in Intel Neural Compressor.
    """

    def unit_score(self, scores: Array) -> Array:
        """Return the absolute value of the sum of each unit.

        Examples:
            >>> import numpy as np
            >>> from secateur import PruningConfig
            >>> MaskGradient(PruningConfig(), "fc").unit_score(np.array([2.0, -3.0]))
            array([2., 3.])
        """
        return namespace(scores).abs(scores)
