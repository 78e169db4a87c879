"""Score units by a first-order Taylor expansion of the loss."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["Taylor"]


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
