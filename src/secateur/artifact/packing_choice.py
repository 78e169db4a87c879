"""Choose the smallest packing for a tensor, and recognize the pattern of its zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.artifact.packing import MAX_LISTED_BLOCKS, BlockPacking, GroupPacking, Packing
from secateur.frameworks.view import WeightView
from secateur.patterns.recognition import GroupMatch, Match, NonzeroMask, find_matches, select_strictest

__all__ = ["MAX_COMPRESSION", "PackingChoice", "choose_packing"]

MAX_EXCESS = 1.01
"""A more structured packing is preferred if it takes at most this many times the bytes of the smallest."""

MAX_COMPRESSION = 1024
"""Maximum ratio of dense to packed bytes, so that a small file cannot exhaust the memory."""


@dataclass(frozen=True, slots=True)
class PackingChoice:
    """How to store a tensor.

    Attributes:
        pattern: The strictest pattern of its zeros; ``None``: there is no pattern.
        packing: The packing; ``None``: dense.
        size: Stored bytes.
    """

    pattern: str | None
    packing: Packing | None
    size: int


def choose_packing(mask: NonzeroMask, number_bytes: int, pattern: str | None = None) -> PackingChoice:
    """Choose the smallest packing, or of those that are nearly as small, the most structured.

    Args:
        mask: Which numbers of the tensor are not zero.
        number_bytes: Bytes of one number.
        pattern: A pattern to try in addition to the common ones.
    """
    dense_bytes = mask.canonical.size * number_bytes
    matches = list(find_matches(mask, pattern))
    packings = [packing for match in matches for packing in _list_packings(match)]
    sizes = {packing: _count_stored_bytes(packing, mask.view, number_bytes) for packing in packings}
    allowed = {packing: size for packing, size in sizes.items() if size < dense_bytes <= size * MAX_COMPRESSION}
    smallest = min(allowed.values(), default=dense_bytes)
    best = next((packing for packing, size in allowed.items() if size <= smallest * MAX_EXCESS), None)
    return PackingChoice(select_strictest(matches, mask), best, sizes[best] if best else dense_bytes)


def _list_packings(match: Match) -> Iterator[Packing]:
    if isinstance(match, GroupMatch):
        yield GroupPacking(match.keep, match.group)
        return
    yield BlockPacking(match.block, match.kept, is_list=False, label=match.pattern)
    if match.count <= MAX_LISTED_BLOCKS:
        yield BlockPacking(match.block, match.kept, is_list=True, label=match.pattern)


def _count_stored_bytes(packing: Packing, view: WeightView, number_bytes: int) -> int:
    return math.prod(packing.compute_values_shape(view)) * number_bytes + packing.count_index_bytes(view)
