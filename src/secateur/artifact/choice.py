"""Which packing makes a tensor smallest, and with that, which pattern its zeros have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.artifact.packing import MOST_LISTED, BlockPacking, GroupPacking, Packing
from secateur.frameworks.view import WeightView
from secateur.patterns.recognition import GroupMatch, Match, NonzeroMask, find_matches, select_strictest

__all__ = ["MOST_SAVED", "Choice", "choose"]

SLACK = 1.01
"""A packing with more structure is taken if by no more than this factor more is stored."""

MOST_SAVED = 1024
"""How many times smaller than dense a packed tensor is at the most, so that a small file never fills the memory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a tensor is stored.

    Attributes:
        pattern: The strictest pattern that its zeros have, ``None``: none.
        packing: What stores it; ``None``: dense.
        size: Bytes stored.
    """

    pattern: str | None
    packing: Packing | None
    size: int


def choose(mask: NonzeroMask, size: int, wanted: str | None = None) -> Choice:
    """The smallest packing; of those that are nearly as small, the one with the most structure.

    Args:
        mask: Where the tensor has anything but zeros.
        size: Bytes of one number.
        wanted: A pattern that is looked for besides the usual ones.
    """
    whole = mask.canonical.size * size
    matches = list(find_matches(mask, wanted))
    packings = [packing for match in matches for packing in _packings(match)]
    sizes = {packing: _stored_bytes(packing, mask.view, size) for packing in packings}
    fitting = {packing: stored for packing, stored in sizes.items() if stored < whole <= stored * MOST_SAVED}
    least = min(fitting.values(), default=whole)
    packing = next((packing for packing, stored in fitting.items() if stored <= least * SLACK), None)
    return Choice(select_strictest(matches, mask), packing, sizes[packing] if packing else whole)


def _packings(match: Match) -> Iterator[Packing]:
    if isinstance(match, GroupMatch):
        yield GroupPacking(match.keep, match.group)
        return
    yield BlockPacking(match.block, match.kept, is_list=False, label=match.pattern)
    if match.count <= MOST_LISTED:
        yield BlockPacking(match.block, match.kept, is_list=True, label=match.pattern)


def _stored_bytes(packing: Packing, view: WeightView, size: int) -> int:
    return math.prod(packing.values_shape(view)) * size + packing.index_bytes(view)
