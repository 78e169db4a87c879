"""How condemned units disappear weight by weight, the smallest weights first."""

from __future__ import annotations

import math

from secateur._array import Array, count_true, namespace
from secateur.patterns.selection import Scores, find_cuts, keep_above

__all__ = ["fade"]


def fade(weight: Array, mask: Array, between: tuple[Array, Array], part: tuple[int, int]) -> Array:
    """The mask part of the way from one mask to another.

    Args:
        weight: Weights of one layer.
        mask: Booleans in the weight's shape: the mask as it is, somewhere on that way; what it prunes stays pruned.
        between: What lived when units were condemned, and what will live; the second prunes all that the first does.
        part: How many of how many equal parts of the condemned weights are gone.

    Returns:
        Booleans in the weight's shape: the first mask without the smallest condemned weights.

    Example:
        >>> import numpy as np
        >>> weight, dense = np.array([3.0, 1.0, 2.0, 4.0]), np.ones(4, dtype=bool)
        >>> fade(weight, dense, (dense, np.array([True, False, False, False])), (2, 3))
        array([ True, False, False,  True])
    """
    xp = namespace(weight)
    now, later = between
    condemned = now & ~later
    pruned = count_true(~now) + count_true(condemned) * part[0] // part[1]
    size = xp.where(condemned, xp.abs(weight), xp.asarray(math.inf, dtype=weight.dtype)).reshape((-1,))
    scores = Scores("", lambda: iter([size]), size.shape[0], mask.reshape((-1,)))
    return keep_above(scores, find_cuts({"": scores}, {"": pruned})[""]).reshape(weight.shape)
