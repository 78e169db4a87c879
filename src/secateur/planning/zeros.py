"""Find the layers whose zeros a pattern lock must not keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.errors import LayerError
from secateur.frameworks import Framework
from secateur.planning.layers import LayerDecision

__all__ = ["find_free_layers"]

UNTRAINED = "all zero: untrained rather than pruned, so it may change"
NO_ZEROS = "has no zeros"


def find_free_layers(decisions: Sequence[LayerDecision], framework: Framework) -> dict[str, str]:
    """Return layer → the reason why it is left free, for layers that a pattern lock selects.

    A weight that is all zero, such as the second matrix of LoRA, has not been trained yet.
    """
    free = {}
    for decision in decisions:
        if decision.config is not None and decision.config.kind == "pattern_lock":
            reason = _find_reason(decision, framework)
            if reason is not None:
                free[decision.candidate.name] = reason
    return free


def _find_reason(decision: LayerDecision, framework: Framework) -> str | None:
    try:
        weight = framework.read_weight(decision.candidate.module)
    except LayerError:  # the pattern explains why
        return None
    if getattr(weight, "is_meta", False):
        return None
    nonzero = framework.count_nonzero(decision.candidate.module)
    if nonzero == 0:
        return UNTRAINED
    may_be_free = decision.candidate.only_locks or decision.candidate.is_frozen
    return NO_ZEROS if may_be_free and nonzero == math.prod(decision.candidate.shape) else None
