"""Rearrange masks: swap pruned and kept units of a layer whose effects on the loss do not add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_REARRANGED_UNITS", "rearrange_units"]

MAX_REARRANGED_UNITS = 1 << 14
"""Maximum number of units of a layer to rearrange, because the time grows with the square of this number."""

TOLERANCE = 1e-12
"""Relative improvement below which units are not exchanged, so that rounding errors do not decide."""

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


def rearrange_units(gradients: Floats, keep: Flags, alive: Flags | None = None, parts: int = 1) -> Flags:
    """Exchange kept for pruned units so that the pruned ones together change the loss less.

    With the Fisher information of the masks of one layer, ``F = Σ g gᵀ`` over batches, pruning a set of units changes
    the loss by about ``½ Σ (Σ g of the set)²``. The ranking ignores products of different units, and so prunes units
    whose effects add up. Here each kept unit, in ascending order of ``Σ g²``, is pruned, and the pruned
    unit is restored that makes the sum smallest. The number of pruned units does not change, and the sum never grows.

    Args:
        gradients: Gradients of the loss with respect to the masks, of shape (batches, units).
        keep: One boolean per unit, ``True`` = kept.
        alive: One boolean per unit, ``False`` if it was pruned before and stays pruned; ``None``: no unit was.
        parts: Number of runs of units of equal length; units are only exchanged within a run.

    Returns:
        One boolean per unit, ``True`` = kept.

    Source:
        Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", arXiv:2204.09656, section 4.2.

    Examples:
        Units 0 and 1 always act in the same direction, and units 1 and 2 compensate for each other:

        >>> gradients = np.array([[1.0, 1.1, -1.2], [1.0, 1.1, -1.2]])
        >>> rearrange_units(gradients, np.array([False, False, True]))
        array([ True, False, False])
    """
    vectors = np.asarray(gradients, dtype=np.float64).T
    free = np.ones(len(keep), dtype=bool) if alive is None else np.asarray(alive)
    pruned = np.flatnonzero(~keep & free)
    norms = np.square(vectors).sum(axis=1)
    part_of = np.arange(len(keep)) * parts // max(1, len(keep))
    if not pruned.size:
        return np.array(keep)
    members = vectors[pruned]
    total = members.sum(axis=0)
    candidates = np.flatnonzero(keep)
    for candidate in candidates[np.argsort(norms[candidates], kind="stable")]:
        joint = total + vectors[candidate]
        # The squared sum without unit i is |joint|² - 2 g_i · joint + |g_i|².
        changes = norms[pruned] - 2 * (members @ joint)
        changes[part_of[pruned] != part_of[candidate]] = np.inf
        best = int(np.argmin(changes))
        without = norms[candidate] - 2 * (vectors[candidate] @ joint)
        if changes[best] < without - TOLERANCE * (joint @ joint + norms[candidate]):
            total = joint - vectors[pruned[best]]
            pruned[best], members[best] = candidate, vectors[candidate]
    rearranged = np.array(keep)
    rearranged[free] = True
    rearranged[pruned] = False
    return rearranged
