"""How condemned units disappear weight by weight, the smallest weights first."""

from __future__ import annotations

import math

from secateur._array import Array, namespace
from secateur.patterns.selection import Scores, find_cuts, keep_above

__all__ = ["fade"]


def fade(weight: Array, now: Array, later: Array, part: tuple[int, int]) -> Array:
    """The mask part of the way from one mask to the next.

    Args:
        weight: Weights of one layer.
        now: Booleans in the weight's shape: what lived when units were condemned.
        later: What will live; pruned wherever `now` is.
        part: How many of how many equal parts of the condemned weights are gone.

    Returns:
        Booleans in the weight's shape: `now` without the smallest condemned weights.

    Example:
        >>> import numpy as np
        >>> weight, dense = np.array([3.0, 1.0, 2.0, 4.0]), np.ones(4, dtype=bool)
        >>> fade(weight, dense, np.array([True, False, False, False]), (2, 3))
        array([ True, False, False,  True])
    """
    xp = namespace(weight)
    condemned = now & ~later
    count = int(xp.count_nonzero(condemned)) * part[0] // part[1]
    size = xp.where(condemned, xp.abs(weight), xp.asarray(math.inf, dtype=weight.dtype)).reshape((-1,))
    scores = Scores("", lambda: iter([size]), size.shape[0])
    return now & keep_above(scores, find_cuts({"": scores}, {"": count})[""]).reshape(weight.shape)
