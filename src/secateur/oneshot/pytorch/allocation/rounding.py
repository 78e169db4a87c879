"""From shares of layers to whole units: the total exact, the bounds kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secateur.oneshot.pytorch.allocation.base import AllocationTask

__all__ = ["apportioned"]

Numbers = npt.NDArray[np.float64]


def apportioned(shares: Mapping[str, float], task: AllocationTask) -> dict[str, int]:
    """Units per layer that add up to the total: all shares plus one common shift, kept in bounds, rounded.

    What is lost by rounding down goes to the layers with the largest remainders, of equals to the first.

    Args:
        shares: Layer → share of its units that it is to lose; only the differences matter.
        task: The total, and the bounds of each layer.
    """
    size, share, low, high = (
        np.array([each[name] for name in task.units], dtype=np.float64)
        for each in (task.units, shares, task.lower, task.upper)
    )

    def shifted(shift: float) -> Numbers:
        return np.clip(size * (share + shift), low, high)

    # The sum is linear between the shifts at which a layer comes to one of its bounds.
    bends = np.unique(np.concatenate([low / size - share, high / size - share]))
    wanted = shifted(float(np.interp(task.total, [shifted(bend).sum() for bend in bends], bends)))
    counts = [math.floor(count) for count in wanted]
    missing = task.total - sum(counts)
    largest_first = [int(place) for place in np.argsort(counts - wanted, kind="stable") if counts[place] < high[place]]
    for place in largest_first[:missing]:
        counts[place] += 1
    return dict(zip(task.units, counts, strict=True))
