"""Score weights by connection sensitivity, in one step or accumulated over steps."""

from __future__ import annotations

from typing import ClassVar

from secateur._array import Array, namespace
from secateur.criteria.base import BaseCriterion, elementwise, register_criterion

__all__ = ["Snip", "SnipMomentum"]


@register_criterion("snip")
class Snip(BaseCriterion):
    """``|w · g|`` of the last step: the first-order change of the loss if the weight is removed.

    Source:
        Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv:1810.02340.

    Examples:
        >>> import numpy as np
        >>> from secateur import PruningConfig
        >>> Snip(PruningConfig(), "fc").score(np.array([2.0, -1.0]), np.array([-3.0, 0.5]))
        array([6. , 0.5])
    """

    needs_gradient: ClassVar[bool] = True

    @elementwise
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """See `BaseCriterion.score`."""
        return namespace(weight).abs(weight * gradient)


@register_criterion("snip_momentum")
class SnipMomentum(Snip):
    """``score ← 0.9 · score + |w · g|``: SNIP's sensitivity, smoothed over batches.

    Source:
        Lee et al., arXiv:1810.02340, for ``|w · g|``; accumulated over steps as in Intel Neural Compressor.
    """

    decay: ClassVar[float] = 0.9
