"""Verify that masks are of a pattern and that pruned weights are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._array import count_true, has_nan
from secateur.patterns.base import BasePattern

ADVICE = "Was the model changed by other code? apply_masks sets them to zero."

__all__ = ["verify_masks", "verify_zeros"]


def verify_masks(
    pattern: BasePattern,
    masks: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    sparsity: float | None = None,
    counts: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Check that masks are of the pattern, and that the weights they prune are exactly zero.

    Args:
        pattern: The pattern, with its layers.
        masks: Valid layer → booleans in the weight's stored shape, ``True`` = kept.
        weights: Layer → the weight as stored.
        sparsity: The sparsity that the masks were made for; the pattern's target if left out.
        counts: In place of `sparsity`, how many budget units were pruned: name of units → count.

    Returns:
        Layer → what is wrong with it; empty if nothing is.

    Example:
        >>> import numpy as np
        >>> from secateur.patterns import WeightView, get_pattern
        >>> view = WeightView(shape=(2, 2), output_axes=(0,), input_axes=(1,))
        >>> pattern = get_pattern({"pattern": "1xchannel"}, {"fc": view}, "array")
        >>> mask = np.array([[True, True], [False, False]])
        >>> verify_masks(pattern, {"fc": mask}, {"fc": np.array([[1.0, 2.0], [0.0, 3.0]])})
        {'fc': '1 pruned weights are not zero. Was the model changed by other code? apply_masks sets them to zero.'}
    """
    return pattern.violations(masks, sparsity, counts=counts) | verify_zeros(masks, weights)


def verify_zeros(masks: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, str]:
    """Check that the weights that masks prune are exactly zero, and that none is ``nan``.

    Args:
        masks: Layer → booleans in the weight's stored shape, ``True`` = kept.
        weights: Layer → the weight as stored; layers without a mask have no zeros to check.

    Returns:
        Layer → what is wrong with it; empty if nothing is.
    """
    wrong = {}
    for name, weight in weights.items():
        mask = masks.get(name)
        if mask is not None and (revived := count_true(weight[~mask] != 0)):
            wrong[name] = f"{revived} pruned weights are not zero. {ADVICE}"
        elif has_nan(weight):
            wrong[name] = "its weights have nan"
    return wrong
