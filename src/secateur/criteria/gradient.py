"""Score weights by the magnitude of their gradient."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array, namespace
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["Gradient"]


@register_criterion("gradient")
class Gradient(BaseCriterion):
    """``|g|`` of the last step, which keeps the weights that training changes most.

    Examples:
        >>> import numpy as np
        >>> from secateur import PruningConfig
        >>> Gradient(PruningConfig(), "fc").score(np.array([1.0, 1.0]), np.array([-3.0, 0.5]))
        array([3. , 0.5])
    """

    needs_gradient: ClassVar[bool] = True

    @elementwise
    def score(self, weight: Array, gradient: Array | None) -> Array:  # noqa: ARG002
        """See `BaseCriterion.score`."""
        return namespace(gradient).abs(gradient)
