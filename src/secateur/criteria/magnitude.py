"""Score weights by their magnitude."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array, namespace
from secateur._deprecated import serve_old_names
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["MagnitudeCriterion"]

__getattr__ = serve_old_names(__name__, {"Magnitude": "secateur.criteria:MagnitudeCriterion"})


@register_criterion("magnitude")
class MagnitudeCriterion(BaseCriterion):
    """``|w|``, which keeps the weights of largest magnitude.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.

    Examples:
        >>> import numpy as np
        >>> from secateur import PruningConfig
        >>> MagnitudeCriterion(PruningConfig(), "fc").score(np.array([-2.0, 1.0]), None)
        array([2., 1.])
    """

    needs_gradient: ClassVar[bool] = False

    @elementwise
    def score(self, weight: Array, gradient: Array | None) -> Array:  # noqa: ARG002
        """See `BaseCriterion.score`."""
        return namespace(weight).abs(weight)
