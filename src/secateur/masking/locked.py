"""Describe the zeros that a pattern lock keeps."""

from __future__ import annotations

from typing import NamedTuple

from secateur._array import Array, to_numpy
from secateur.frameworks import WeightView
from secateur.patterns.recognition import SINGLE, BlockMatch, NonzeroMask, find_matches, select_strictest

__all__ = ["LockedZeros", "describe_locked_zeros"]


class LockedZeros(NamedTuple):
    """The zeros of a weight in terms of the strictest pattern that they follow.

    Attributes:
        pattern: The pattern's specification; ``"1x1"`` if they follow no other.
        units: Number of units in the weight.
        pruned_units: Number of units that are all zero.
    """

    pattern: str
    units: int
    pruned_units: int


def describe_locked_zeros(view: WeightView, mask: Array) -> LockedZeros:
    """Recognize the pattern of a mask in the stored shape of a weight.

    Examples:
        >>> import numpy as np
        >>> view = WeightView(shape=(4, 2), output_axes=(0,), input_axes=(1,))
        >>> describe_locked_zeros(view, np.array([[True, True], [False, True]] * 2))
        LockedZeros(pattern='1x1', units=8, pruned_units=2)
    """
    nonzero = NonzeroMask(view, to_numpy(mask))
    matches = {match.pattern: match for match in find_matches(nonzero)}
    pattern = select_strictest(matches.values(), nonzero)
    match = None if pattern is None else matches[pattern]
    if isinstance(match, BlockMatch):
        return LockedZeros(match.pattern, match.count, match.count - match.kept)
    size = nonzero.canonical.size
    return LockedZeros(pattern or SINGLE, size, size - nonzero.count)
