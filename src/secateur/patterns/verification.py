"""Verify that masks follow a pattern and that pruned weights are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._array import count_true, has_nan
from secateur.patterns.base import BasePattern

ADVICE = "Was the model changed after the last step, as by loading the best checkpoint? apply_masks sets them to zero."

__all__ = ["verify_masks", "verify_zeros"]


def verify_masks(
    pattern: BasePattern,
    masks: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    sparsity: float | None = None,
    counts: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Check that masks follow a pattern, and that pruned weights are exactly zero.

    Args:
        pattern: The pattern, with its layers.
        masks: Valid layer → booleans in the weight's stored shape, ``True`` = kept.
        weights: Layer → the weight as stored.
        sparsity: The sparsity for which the masks were selected; the target of the pattern by default.
        counts: In place of `sparsity`, name of units → number of pruned budget units.

    Returns:
        Layer → what is wrong with it; empty if all layers are valid.

    Examples:
        >>> import numpy as np
        >>> from secateur.patterns import WeightView, get_pattern
        >>> view = WeightView(shape=(2, 2), output_axes=(0,), input_axes=(1,))
        >>> pattern = get_pattern({"pattern": "1xchannel"}, {"fc": view}, "array")
        >>> mask = np.array([[True, True], [False, False]])
        >>> weight = np.array([[1.0, 2.0], [0.0, 3.0]])
        >>> wrong = verify_masks(pattern, {"fc": mask}, {"fc": weight})
        >>> wrong["fc"].partition(".")[0]
        '1 pruned weights are not zero'
    """
    return pattern.violations(masks, sparsity, counts=counts) | verify_zeros(masks, weights)


def verify_zeros(masks: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, str]:
    """Check that pruned weights are exactly zero, and that no weight is ``nan``.

    Args:
        masks: Layer → booleans in the weight's stored shape, ``True`` = kept.
        weights: Layer → the weight as stored. Without a mask, only ``nan`` is checked.

    Returns:
        Layer → what is wrong with it; empty if all layers are valid.
    """
    wrong = {}
    for name, weight in weights.items():
        mask = masks.get(name)
        if mask is not None and (nonzero := count_true((weight != 0) & ~mask)):
            wrong[name] = f"{nonzero} pruned weights are not zero. {ADVICE}"
        elif has_nan(weight):
            wrong[name] = "its weights contain nan"
    return wrong
