"""Recognize the pattern of the zeros in a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur.errors import ConfigError, LayerError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import BasePattern, get_pattern_class
from secateur.patterns.nm import SPECIFICATION
from secateur.patterns.tiling import BlockTiling, OutputsLastTiling, Tiling
from secateur.patterns.transposable import TransposableNMPattern

__all__ = [
    "BlockMatch",
    "GroupMatch",
    "Match",
    "NonzeroMask",
    "count_units",
    "find_matches",
    "recognize_pattern",
    "select_strictest",
]

Flags = npt.NDArray[np.bool_]

CHANNEL_PATTERNS = ("1xchannel", "channelx1")

BLOCK_PATTERNS = (
    *("32x32", "16x16", "32x1", "1x32", "8x8", "16x1", "1x16"),
    *("4x4", "8x1", "1x8", "4x1", "1x4", "2x1", "1x2"),
)
"""Block patterns to try, the largest first."""

GROUP_SIZES = (2, 4, 8, 16, 32)
"""Values of M for which to try N:M."""

SINGLE = "1x1"

MAX_UINT8 = 255

MAX_CACHED_TILINGS = 1000

MAX_EXCESS = 1.01
"""A pattern matches if it keeps at most this many weights for each nonzero weight."""

MIN_UNSTRUCTURED_SPARSITY = 0.01
"""Minimum share of zeros that is recognized as ``1x1`` if there is no other structure."""


class NonzeroMask:
    """The nonzero weights of a tensor.

    Args:
        view: The canonical view of the tensor.
        nonzero: Booleans in the stored shape of the tensor.

    Attributes:
        view: The canonical view of the tensor.
        canonical: The booleans as (O, K, I).
        count: Number of nonzero weights.
    """

    def __init__(self, view: WeightView, nonzero: Flags) -> None:
        self.view = view
        self.canonical = np.ascontiguousarray(view.to_canonical(nonzero))
        self.count = count_true(self.canonical)

    def reduce_blocks(self, block: tuple[int, int, int]) -> Flags:
        """Return which blocks contain a nonzero weight, in the shape of the tiling."""
        nonzero = self.canonical
        for axis, length in enumerate(block):
            nonzero = _reduce_runs(nonzero, length, axis)
        return nonzero

    def count_largest_group(self, group: int) -> int:
        """Return the maximum number of nonzero weights in a group of `group` consecutive input channels."""
        counts = self.canonical.reshape(-1, group).view(np.uint8)
        while counts.shape[1] % 2 == 0 and group <= MAX_UINT8:
            counts = counts[:, 0::2] + counts[:, 1::2]
        if counts.shape[1] == 1:
            return int(counts.max())
        return int(counts.sum(axis=1, dtype=np.uint32).max())


@dataclass(frozen=True, slots=True)
class BlockMatch:
    """A match of zeros with whole blocks, which include single weights and whole channels.

    Attributes:
        pattern: The pattern's specification.
        block: Size of a block along O, K and I.
        kept: Number of blocks that contain a nonzero weight.
        count: Number of all blocks.
    """

    pattern: str
    block: tuple[int, int, int]
    kept: int
    count: int

    @property
    def kept_weights(self) -> int:
        """Number of weights in blocks that contain a nonzero weight."""
        return self.kept * math.prod(self.block)


@dataclass(frozen=True, slots=True)
class GroupMatch:
    """A match of zeros with groups of consecutive input channels (N:M).

    Attributes:
        keep: N, the maximum number of nonzero weights in a group.
        group: M, the length of a group.
        count: Number of groups.
    """

    keep: int
    group: int
    count: int

    @property
    def pattern(self) -> str:
        """The pattern's specification."""
        return f"{self.keep}:{self.group}"

    @property
    def kept_weights(self) -> int:
        """Number of weights that the pattern keeps."""
        return self.keep * self.count


Match: TypeAlias = BlockMatch | GroupMatch


def find_matches(mask: NonzeroMask, preferred: str | None = None) -> Iterator[Match]:
    """Yield every pattern that prunes some of the zeros, the most structured first.

    Args:
        mask: The nonzero weights.
        preferred: A pattern to try before all others.
    """
    if mask.count == mask.canonical.size:
        return
    specifications = dict.fromkeys([*([preferred] if preferred else []), *CHANNEL_PATTERNS, *BLOCK_PATTERNS])
    for specification in specifications:
        yield from _match_blocks(mask, specification)
    for group in dict.fromkeys([*_parse_group_size(preferred), *GROUP_SIZES]):
        inputs = mask.view.canonical_shape[2]
        if inputs % group == 0 and 0 < (keep := mask.count_largest_group(group)) < group:
            yield GroupMatch(keep, group, mask.canonical.size // group)
    if SINGLE not in specifications:
        yield from _match_blocks(mask, SINGLE)


def select_strictest(matches: Iterable[Match], mask: NonzeroMask) -> str | None:
    """Return the first pattern that keeps few weights besides the nonzero ones (`MAX_EXCESS`), or ``None``."""
    for match in matches:
        if match.kept_weights <= mask.count * MAX_EXCESS:
            is_notable = match.pattern != SINGLE or mask.count <= mask.canonical.size * (1 - MIN_UNSTRUCTURED_SPARSITY)
            return match.pattern if is_notable else None
    return None


def recognize_pattern(mask: NonzeroMask) -> str | None:
    """Return the strictest pattern that the zeros follow, or ``None`` if there are too few zeros.

    Examples:
        >>> view = WeightView(shape=(4, 4), output_axes=(0,), input_axes=(1,))
        >>> recognize_pattern(NonzeroMask(view, np.tile([True, True, False, False], (4, 1))))
        'channelx1'
        >>> recognize_pattern(NonzeroMask(view, np.eye(4, dtype=bool)))
        '1:4'
    """
    return select_strictest(find_matches(mask), mask)


def count_units(mask: NonzeroMask, pattern: str) -> tuple[int, int]:
    """Count the units of a pattern in a weight, and those that it prunes.

    A unit of N:M is one weight; N weights of each group count as kept, even if they are zero.

    Args:
        mask: The nonzero weights.
        pattern: A pattern that `recognize_pattern` returns.

    Examples:
        >>> view = WeightView(shape=(4, 4), output_axes=(0,), input_axes=(1,))
        >>> mask = np.tile([True, True, False, False], (4, 1))
        >>> count_units(NonzeroMask(view, mask), "channelx1")
        (4, 2)

        >>> view = WeightView(shape=(4, 4), output_axes=(0,), input_axes=(1,))
        >>> count_units(NonzeroMask(view, np.eye(4, dtype=bool)), "1:4")
        (16, 12)
    """
    size = mask.canonical.size
    if SPECIFICATION.fullmatch(pattern):
        keep, group = map(int, pattern.split(":"))
        return size, size // group * (group - keep)
    block = next(iter(_match_blocks(mask, pattern)), None)
    return (size, size - mask.count) if block is None else (block.count, block.count - block.kept)


def _match_blocks(mask: NonzeroMask, specification: str) -> Iterator[BlockMatch]:
    tiling = _tile(specification, mask.view)
    if isinstance(tiling, OutputsLastTiling):
        tiling = BlockTiling(tiling.shape, (1, 1, 1))
    if not isinstance(tiling, BlockTiling):
        return
    kept = count_true(mask.reduce_blocks(tiling.block))
    if kept < tiling.count:
        yield BlockMatch(specification, tiling.block, kept, tiling.count)


def _parse_group_size(specification: str | None) -> list[int]:
    """Return a list with the M of an N:M pattern, empty for other patterns."""
    counts = (specification or "").removesuffix(TransposableNMPattern.suffix)
    return [int(counts.partition(":")[2])] if SPECIFICATION.fullmatch(counts) else []


def _tile(specification: str, view: WeightView) -> Tiling | None:
    """Return the tiling of a weight by a pattern, or ``None`` if the weight does not fit."""
    try:
        return _tile_cached(get_pattern_class(specification), specification, view)
    except ConfigError:
        return None


@lru_cache(maxsize=MAX_CACHED_TILINGS)
def _tile_cached(pattern: type[BasePattern], specification: str, view: WeightView) -> Tiling | None:
    """Cache tilings: a model has many weights of few shapes, and a file may have very many small weights."""
    try:
        return pattern({"pattern": specification, "target_sparsity": 0.0}, {}).tile(view)
    except (ConfigError, LayerError):
        return None


def _reduce_runs(flags: Flags, length: int, axis: int) -> Flags:
    """Reduce each run of `length` booleans along an axis to whether any of them is true."""
    while length > 1 and length % 2 == 0:
        even = tuple(slice(None) if dim != axis else slice(0, None, 2) for dim in range(flags.ndim))
        odd = tuple(slice(None) if dim != axis else slice(1, None, 2) for dim in range(flags.ndim))
        flags, length = flags[even] | flags[odd], length // 2
    if length == 1:
        return flags
    shape = (*flags.shape[:axis], flags.shape[axis] // length, length, *flags.shape[axis + 1 :])
    reduced: Any = np.logical_or.reduce(flags.reshape(shape), axis=axis + 1)
    return np.asarray(reduced, np.bool_)
