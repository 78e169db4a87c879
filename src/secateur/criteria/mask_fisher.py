"""Score units by the diagonal of the empirical Fisher information of their masks."""

from __future__ import annotations

from typing import ClassVar

from secateur.criteria.base import register_criterion
from secateur.criteria.taylor import Taylor

__all__ = ["MaskFisher"]


@register_criterion("mask_fisher")
class MaskFisher(Taylor):
    """``score ← score + (Σ w · g)²``, the inner sum over a unit's weights and the outer one over batches.

    If a unit's weights were multiplied by a mask variable of value 1, this would be the entry of that variable on the
    diagonal of the empirical Fisher information. Unlike in `Taylor`, all batches count equally, which suits a model
    that is not being trained. `secateur.prune` also rearranges the masks of each layer: see `rearrange_units`. The
    definition includes the reduction, so ``criterion_reduce_type`` is ignored.

    Source:
        Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", arXiv:2204.09656, section 4.

    Examples:
        >>> from secateur import PruningConfig
        >>> MaskFisher(PruningConfig(), "fc").decay
        1.0
    """

    decay: ClassVar[float] = 1.0
    is_rearranged: ClassVar[bool] = True
